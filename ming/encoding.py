"""Images and waveforms as the bytes of files. Shape letter: N samples."""

import io
import os

import numpy as np
import soundfile
import torch
from PIL import Image

from .files import replacing

FULL_SCALE = np.iinfo(np.int16).max


def encode_image(image: Image.Image, file_format: str = "png") -> bytes:
    """An image as a file.

    Args:
        file_format: a format that Pillow writes, such as "png", "jpeg" or "webp".
    """
    file = io.BytesIO()
    image.save(file, file_format.upper())
    return file.getvalue()


def to_pcm16(waveform: torch.Tensor) -> np.ndarray:
    """A waveform float [N] within -1 and 1 -> little-endian int16 [N]; what lies outside is clipped."""
    return (waveform.detach().float().cpu().clamp(-1, 1) * FULL_SCALE).round().numpy().astype("<i2")


def encode_audio(waveform: torch.Tensor, sampling_rate: int, file_format: str = "wav") -> bytes:
    """A waveform float [N] at `sampling_rate` Hz as a 16-bit file with one channel.

    Args:
        file_format: "wav" or "flac".
    """
    return _file_of(to_pcm16(waveform), sampling_rate, format=file_format.upper(), subtype="PCM_16")


def save_audio(path: str | os.PathLike, waveform: torch.Tensor, sampling_rate: int) -> None:
    """Write a waveform float [N] at `sampling_rate` Hz as a 16-bit audio file; the ending of the path is its format.

    Raises:
        ValueError: the ending names no audio format.
        OSError: the file cannot be written.
    """
    ending = os.path.splitext(path)[1].lstrip(".").upper()
    if ending not in soundfile.available_formats():
        raise ValueError(f"{path}: cannot write .{ending.lower()} files; use .wav, .flac, .ogg or .mp3")
    content = _file_of(waveform.detach().float().cpu().numpy(), sampling_rate, format=ending)
    with replacing(path) as partial:
        partial.write_bytes(content)


def _file_of(samples: np.ndarray, sampling_rate: int, **form: str) -> bytes:
    """Samples [N] as a file; without any, formats that begin with their first sample hold one of silence."""
    file = io.BytesIO()
    soundfile.write(file, samples, sampling_rate, **form)
    if not file.getvalue():
        soundfile.write(file, np.zeros(1, samples.dtype), sampling_rate, **form)
    return file.getvalue()


__all__ = ["encode_audio", "encode_image", "save_audio", "to_pcm16"]
