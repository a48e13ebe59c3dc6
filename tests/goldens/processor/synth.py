"""Recipes of the synthetic pictures and waveforms from which the goldens were made (numpy only)."""

import numpy as np

IMAGES = {  # name: (height, width, mode, seed)
    "aligned_336x448": (336, 448, "RGB", 1),
    "odd_301x517": (301, 517, "RGB", 2),
    "tall_1200x90": (1200, 90, "RGB", 3),
    "wide_60x1500": (60, 1500, "RGB", 4),
    "tiny_20x33": (20, 33, "RGB", 5),
    "rgba_130x170": (130, 170, "RGBA", 6),
    "gray_257x255": (257, 255, "L", 7),
    "large_2000x3000": (2000, 3000, "RGB", 8),
}
AUDIOS = {  # name: (rate in Hz, samples, channels, dtype, seed)
    "mono16k_1.00s": (16000, 16000, 1, "float32", 11),
    "mono8k_0.80s": (8000, 6400, 1, "float32", 12),
    "mono44k1_0.70s": (44100, 30870, 1, "float32", 13),
    "int16_16k_0.50s": (16000, 8000, 1, "int16", 14),
    "stereo16k_0.60s": (16000, 9600, 2, "float32", 15),
    "short16k_0.05s": (16000, 800, 1, "float32", 16),
}


def image_array(name: str) -> np.ndarray:
    """uint8 [H, W] or [H, W, C]."""
    height, width, mode, seed = IMAGES[name]
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x * 3 + y * 5) % 256]
    planes.append(255 - x * 200 / max(width - 1, 1))
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.stack(planes[:channels], -1) + random.integers(-20, 21, size=(height, width, channels))
    pixels = np.floor(np.clip(pixels, 0, 255)).astype(np.uint8)
    return pixels[..., 0] if mode == "L" else pixels


def audio_array(name: str) -> np.ndarray:
    """float32 or int16 [channels, samples]."""
    rate, samples, channels, dtype, seed = AUDIOS[name]
    random = np.random.default_rng(seed)
    t = np.arange(samples) / rate
    waves = []
    for k in range(channels):
        wave = 0.4 * np.sin(2 * np.pi * (200 + 300 * k + 900 * t) * t) + 0.2 * np.sin(2 * np.pi * 440 * t + k)
        waves.append((wave + 0.05 * random.standard_normal(samples)) * np.minimum(1, 20 * t + 0.1))
    waves = np.clip(np.stack(waves), -0.99, 0.99)
    return np.round(waves * 32767).astype(np.int16) if dtype == "int16" else waves.astype(np.float32)
