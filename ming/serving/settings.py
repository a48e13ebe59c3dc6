"""Settings of the server: what a request may ask for, how the engine works, how the model is offered."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ming.prompts import TRANSCRIPTION_PROMPT

LOOPBACK = ("127.0.0.1", "::1", "localhost")  # hosts that only this machine reaches


def _number(default: int | float, text: str, minimum: int) -> Any:
    return field(default=default, metadata={"help": text, "minimum": minimum})


@dataclass(frozen=True)
class NumericSettings:
    """A dataclass of numbers, each with a help text and a minimum that is enforced."""

    def __post_init__(self):
        for setting in fields(self):
            value, minimum = getattr(self, setting.name), setting.metadata["minimum"]
            if not minimum <= value < math.inf:  # not for NaN, either
                finite = "" if math.isfinite(value) else "a finite number of "
                raise ValueError(
                    f"{setting.name}={value!r} must be {finite}at least {minimum}: {setting.metadata['help']}"
                )


@dataclass(frozen=True)
class Limits(NumericSettings):
    """Limits of a request; requests beyond them are refused before any work. The texts explain each limit."""

    connections: int = _number(512, "clients that may be connected at the same time", 1)
    head_seconds: float = _number(10.0, "seconds until the head of a request must have come", 0)
    stall_seconds: float = _number(60.0, "seconds until a client that stopped reading its answer is cut off", 0)
    body_seconds: float = _number(120.0, "seconds until a request's body must have come", 0)
    body_bytes: int = _number(64 << 20, "bytes of a request's body", 1)
    all_bodies_bytes: int = _number(1 << 30, "bytes of the bodies of all requests that are being answered", 1)
    remote_bytes: int = _number(64 << 20, "bytes of one image, recording or video that is read from an address", 1)
    remote_seconds: float = _number(20.0, "seconds until a file at an address must be read completely", 0)
    media_items: int = _number(16, "images, recordings and videos in a request", 1)
    image_pixels: int = _number(32_000_000, "pixels of an input image or video frame, before it is resized", 1)
    media_seconds: float = _number(300.0, "seconds of all recordings, and of all videos, of a request", 0)
    prompt_tokens: int = _number(32_768, "tokens of a prompt with its media; the model's context is a limit, too", 1)
    new_tokens: int = _number(1024, "tokens of a reply; also the default", 1)
    spoken_replies: int = _number(1000, "spoken replies whose ids are known; the oldest gives way", 0)
    spoken_seconds: float = _number(3600.0, "seconds for which the id of a spoken reply is known", 0)
    speech_characters: int = _number(4096, "characters of a text to read aloud", 1)
    whole_characters: int = _number(
        200, "characters up to which a wav is sent when it is complete, with its length; a longer one is streamed", 0
    )
    drawings: int = _number(4, "images to draw in a request", 1)
    drawing_pixels: int = _number(2048 * 2048, "pixels of an image to draw", 1)
    drawing_steps: int = _number(50, "denoising steps of an image to draw", 1)


@dataclass(frozen=True)
class EngineSettings(NumericSettings):
    """How requests wait and are batched; the texts explain each setting."""

    queue: int = _number(64, "requests that may wait; further ones are answered with 429", 1)
    batch: int = _number(8, "chats that are decoded side by side", 1)
    batch_tokens: int = _number(65_536, "chats side by side times tokens of the longest, prompt and reply", 1)
    streams: int = _number(8, "spoken replies that are made side by side", 1)
    retry_after: int = _number(2, "seconds after which a client that got 429 should try again", 1)


@dataclass(frozen=True)
class Site:
    """How the model is offered.

    Args:
        name: what clients ask for as `model`.
        api_key: the bearer token that clients must send; None lets everybody in.
        transcription_prompt: the instruction that goes with a recording to transcribe.
        repeatable: whether speech must be the same bytes in any company, since another replica may have to continue
            it; rows of one pass round differently.
    """

    name: str = "ming"
    api_key: str | None = field(default=None, repr=False)
    transcription_prompt: str = TRANSCRIPTION_PROMPT
    repeatable: bool = False


__all__ = ["LOOPBACK", "EngineSettings", "Limits", "NumericSettings", "Site"]
