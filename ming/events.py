"""Events: what `stream` and `speak_stream` yield while a reply is made. Shape letters: I images, C channels."""

from dataclasses import dataclass, field

import torch
from PIL import Image


@dataclass(frozen=True)
class SpokenPiece:
    """A piece of a spoken reply: its normalised text, seconds, and why it ended, see `TalkerPiece`."""

    text: str
    seconds: float
    finish_reason: str


@dataclass(frozen=True)
class TextDelta:
    """More text of the reply."""

    text: str


@dataclass(frozen=True)
class AudioChunk:
    """More audio of the reply: waveform float32 [N] at sampling_rate Hz."""

    waveform: torch.Tensor
    sampling_rate: int


@dataclass(frozen=True)
class ImageProgress:
    """A denoising step is done: step `step` of `num_steps`, and the latents [I, C, h, w] for a preview."""

    step: int
    num_steps: int
    latents: torch.Tensor


@dataclass(frozen=True)
class ImageDone:
    """Finished images, and the (height, width) they were made at."""

    images: list[Image.Image]
    native_size: tuple[int, int] | None


@dataclass(frozen=True)
class Done:
    """The reply is complete: its text, and what was spoken in which piece."""

    text: str
    pieces: list[SpokenPiece] = field(default_factory=list)


StreamEvent = TextDelta | AudioChunk | ImageProgress | ImageDone | Done

__all__ = ["AudioChunk", "Done", "ImageDone", "ImageProgress", "SpokenPiece", "StreamEvent", "TextDelta"]
