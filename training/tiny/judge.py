"""Judge from pixels whether an image shows a scene, for the rows drawing, editing and style of the table.

The judge is code without a network. It compares each position of the image with templates of every kind and size,
filled and in outline, at every shift. The nearest template gives the shape; the colour is the one in which it explains
the pixels best. Both are smoothed a little first, since lines may be thinner than a pixel and shifts may be half a
pixel.
"""

from functools import cache

import numpy as np
from PIL import Image

from .drawing import CENTRE, RADIUS, draw_shape
from .scenes import COLOURS, KINDS, POSITIONS, SIZES, Scene, Shape

SIDE = 128  # pixels; images are judged at this size
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
BORDER = 3  # pixels at the edges, where no shape reaches
REACH = 0.165  # of a side: half of the distance between two places
HALF = round(REACH * SIDE)
PERIOD = 64  # pixels of a window with its margin; shifts wrap around
STRONG = 0.85  # share of the strongest difference from the background; these pixels give the direction of the colour
FAINT = 40  # grey levels, summed over the three channels; the nearest two colours of the world differ by 90
MIN_AREA = 0.002  # share of the image; the smallest shape, a small star in outline, has 0.004
SMOOTHING = 1.0  # pixels
MIN_SIMILARITY = 0.92  # cosine with the best template: right shapes reach 0.96, those without a quarter less than 0.92
RADII = np.linspace(0.05, 0.17, 31)
SMALL_BELOW = (RADIUS["small"][1] + RADIUS["large"][0]) / 2
UNCLEAR = "unclear"  # kind of anything that is not a shape of the world


def nearest_colour(pixel: np.ndarray) -> str:
    """The colour of the world that is nearest to a pixel [3]."""
    return list(COLOURS)[int(np.abs(PALETTE - pixel).sum(axis=1).argmin())]


@cache
def _lowpass() -> np.ndarray:
    """Transfer function of the smoothing, [PERIOD, PERIOD]."""
    row = np.exp(-2 * (np.pi * SMOOTHING * np.fft.fftfreq(PERIOD)) ** 2)
    return np.outer(row, row)


def _smooth_spectrum(window: np.ndarray) -> np.ndarray:
    """Fourier transform of a smoothed window [..., n, n] in a period of [..., PERIOD, PERIOD]."""
    return np.fft.fft2(window, (PERIOD, PERIOD)) * _lowpass()


@cache
def templates() -> tuple[list[tuple[str, float, bool]], np.ndarray, np.ndarray]:
    """The K templates: (kind, radius as a share of the side, hollow) each, the spectra complex [K, PERIOD, PERIOD] of
    their smoothed masks, and the energies [K] of the spectra."""
    names = [(kind, float(radius), hollow) for kind in KINDS for radius in RADII for hollow in (False, True)]
    masks, side = [], 2 * HALF + 1
    for kind, radius, hollow in names:
        image = Image.new("RGB", (side, side))
        draw_shape(image, kind, "white", (side / 2, side / 2), radius * SIDE, outline=hollow)
        masks.append(np.asarray(image.convert("L"), dtype=np.float32) / 255)
    spectra = _smooth_spectrum(np.stack(masks))
    return names, spectra, _inner(spectra, spectra)


def _inner(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Inner product of two real windows, from their spectra."""
    return (first * second.conj()).real.sum(axis=(-2, -1)) / PERIOD**2


def read_shape(pixels: np.ndarray, background: str, position: str) -> tuple[Shape | None, bool]:
    """The shape at a position of an image uint8 [SIDE, SIDE, 3], or None, and whether it is hollow."""
    x, y = (min(max(round(place * SIDE), HALF), SIDE - HALF - 1) for place in CENTRE[position])
    window: np.ndarray = pixels[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1].astype(np.float32)
    offsets = window - np.float32(COLOURS[background])
    strength = np.abs(offsets).sum(axis=-1)
    if (strength > FAINT).sum() < MIN_AREA * SIDE * SIDE:
        return None, False
    direction = offsets[strength >= STRONG * strength.max()].mean(axis=0)
    direction /= np.linalg.norm(direction)
    channels = _smooth_spectrum(offsets.transpose(2, 0, 1))
    names, spectra, energies = templates()
    # The energy includes shapes of a second colour, which a template cannot explain.
    energy = _inner(channels, channels).sum()
    products = np.fft.ifft2(np.tensordot(direction, channels, 1) * spectra.conj()).real
    similarity = products.max(axis=(1, 2)) / np.sqrt(energies * energy)
    best = int(similarity.argmax())
    shift = np.unravel_index(products[best].argmax(), products[best].shape)
    phase = np.exp(-2j * np.pi * np.add.outer(*(np.fft.fftfreq(PERIOD) * step for step in shift)))
    offset = _inner(channels, spectra[best] * phase) / energies[best]  # a shift keeps the energy of a template
    colour = nearest_colour(np.float32(COLOURS[background]) + offset)
    kind, radius, hollow = names[best]
    if similarity[best] < MIN_SIMILARITY or colour == background:
        kind = UNCLEAR
    return Shape(kind, colour, SIZES[int(radius > SMALL_BELOW)], position), hollow


def read_picture(image: Image.Image) -> tuple[Scene, bool]:
    """The scene that an image shows, and whether all its shapes are hollow.

    Anything that is not a shape of the world becomes a shape of the kind `UNCLEAR`.
    """
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    edges = np.concatenate([pixels[:BORDER].reshape(-1, 3), pixels[-BORDER:].reshape(-1, 3)])
    edges = np.concatenate([edges, pixels[:, :BORDER].reshape(-1, 3), pixels[:, -BORDER:].reshape(-1, 3)])
    background = nearest_colour(np.median(edges, axis=0))
    found = [read_shape(pixels, background, position) for position in POSITIONS]
    shapes = tuple(shape for shape, _ in found if shape is not None)
    hollow = bool(shapes) and all(is_hollow for shape, is_hollow in found if shape is not None)
    return Scene(background, shapes), hollow


def shows(image: Image.Image, scene: Scene, outline: bool = False) -> bool:
    """Whether an image shows exactly a scene: every named attribute and nothing else, filled or in outline."""
    seen, hollow = read_picture(image)
    return seen == scene and hollow == outline
