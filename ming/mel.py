"""Mel spectrogram of the vocoder, of training and of a voice's prompt.

Letters: F frames, M mel bands.
"""

import functools
from dataclasses import dataclass

import torch
from transformers.audio_utils import mel_filter_bank

from .media import resample

RECORDING_RATE = 16_000  # Hz, of the recordings that voices are made from
POWER_FLOOR = 1e-9  # keeps the gradient of the square root finite
MEL_FLOOR = 1e-5


@dataclass(frozen=True)
class MelSettings:
    """Settings of the vocoder's mel spectrogram: the arguments of `vocoder_mel` and `prompt_mel` by the same names.

    Attributes:
        rate: rate of the waveform in Hz.
        n_fft: samples in a window.
        hop_length: samples from one window to the next.
        n_mels: number of bands from `fmin` to `fmax` (Hz).
    """

    rate: int = 22050
    n_fft: int = 1024
    hop_length: int = 256
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float = 8000.0

    def __post_init__(self) -> None:
        if min(self.rate, self.n_fft, self.hop_length, self.n_mels) < 1 or self.hop_length > self.n_fft:
            raise ValueError(f"{self}: sizes must be at least 1 and hop_length at most n_fft")
        if not 0 <= self.fmin < self.fmax <= self.rate / 2:
            raise ValueError(f"{self}: the bands must lie within 0..{self.rate / 2:g} Hz, half the rate")


@functools.lru_cache(maxsize=8)
def _filters_and_window(
    settings: MelSettings, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    filters = mel_filter_bank(
        num_frequency_bins=settings.n_fft // 2 + 1,
        num_mel_filters=settings.n_mels,
        min_frequency=settings.fmin,
        max_frequency=settings.fmax,
        sampling_rate=settings.rate,
        norm="slaney",
        mel_scale="slaney",
    )
    # A tensor made in inference mode could not take part in training later on.
    with torch.inference_mode(False):
        bands = torch.from_numpy(filters).to(dtype).to(device)  # not every device has float64
        return bands, torch.hann_window(settings.n_fft, device=device, dtype=dtype)


def vocoder_mel(
    waveform: torch.Tensor,
    rate: int = MelSettings.rate,
    n_fft: int = MelSettings.n_fft,
    hop_length: int = MelSettings.hop_length,
    n_mels: int = MelSettings.n_mels,
    fmin: float = MelSettings.fmin,
    fmax: float = MelSettings.fmax,
) -> torch.Tensor:
    """Log-mel spectrogram of waveforms that already have the vocoder's rate; differentiable, on any device.

    Args:
        waveform: [..., samples] at `rate`, in -1..1. float16 and bfloat16 are computed in float32.
        rate, n_fft, hop_length, n_mels, fmin, fmax: see `MelSettings`; the defaults are the released vocoder's.

    Returns:
        float32 (float64 if the waveform is) [..., F, M], F = samples // hop_length if `n_fft - hop_length` is even.

    Raises:
        ValueError: settings that do not fit together, or too few samples for the reflection at the ends.
    """
    settings = MelSettings(rate, n_fft, hop_length, n_mels, fmin, fmax)
    padding = (n_fft - hop_length) // 2
    samples, shortest = (waveform.shape[-1] if waveform.ndim else 0), max(padding + 1, n_fft - 2 * padding)
    if samples < shortest:
        raise ValueError(f"a waveform of {samples} samples is too short for a mel spectrogram; it takes {shortest}")
    waveform = waveform if waveform.dtype == torch.float64 else waveform.float()
    filters, window = _filters_and_window(settings, waveform.device, waveform.dtype)
    padded = torch.nn.functional.pad(waveform.reshape(-1, samples), (padding, padding), mode="reflect")
    spectrum = torch.stft(padded, n_fft, hop_length, window=window, center=False, return_complex=True)
    magnitude = (torch.view_as_real(spectrum).square().sum(-1) + POWER_FLOOR).sqrt()
    with torch.autocast(waveform.device.type, enabled=False):  # it would round quiet bands to 8 bits
        mel = (magnitude.transpose(-1, -2) @ filters).clamp(min=MEL_FLOOR).log()
    return mel.reshape(*waveform.shape[:-1], *mel.shape[1:])


def prompt_mel(
    waveform: torch.Tensor,
    rate: int = MelSettings.rate,
    n_fft: int = MelSettings.n_fft,
    hop_length: int = MelSettings.hop_length,
    n_mels: int = MelSettings.n_mels,
    fmin: float = MelSettings.fmin,
    fmax: float = MelSettings.fmax,
) -> torch.Tensor:
    """Log-mel spectrogram of a prompt: as released it comes from 16 kHz, so it is empty above 8 kHz. Differentiable.

    Args:
        waveform: float32 [..., samples] at 16 kHz, in -1..1.
        rate: Hz, to which the waveform is resampled.
        n_fft, hop_length, n_mels, fmin, fmax: see `MelSettings`.

    Returns:
        float32 [..., F, M].

    Raises:
        ValueError: see `vocoder_mel`.
    """
    # `resample` caches its kernel on the CPU.
    resampled = resample(waveform.float().cpu(), RECORDING_RATE, rate).to(waveform.device)
    return vocoder_mel(resampled, rate, n_fft, hop_length, n_mels, fmin, fmax)
