"""What a request may ask for, how the engine works, how the model is offered: what the command line sets."""

from dataclasses import dataclass, field, fields


def _setting(default, text: str):
    return field(default=default, metadata={"help": text})


class Numbers:
    """Settings that are numbers: whole ones above 0, others not below."""

    def __post_init__(self):
        for setting in fields(self):
            value, least = getattr(self, setting.name), 1 if isinstance(setting.default, int) else 0
            if not value >= least:
                raise ValueError(f"{setting.name}={value!r} must be at least {least}: {setting.metadata['help']}")


LOOPBACK = ("127.0.0.1", "::1", "localhost")  # hosts that only this machine reaches


@dataclass(frozen=True)
class Limits(Numbers):
    """Limits of a request; more is refused before any work. The texts say what each is."""

    body_bytes: int = _setting(64 << 20, "bytes of a request's body")
    remote_bytes: int = _setting(64 << 20, "bytes of one medium read from an address")
    remote_seconds: float = _setting(20.0, "seconds that one medium may take to be read from an address")
    media_items: int = _setting(16, "images, recordings and videos in a request")
    image_pixels: int = _setting(32_000_000, "pixels of a picture or video frame that comes in, before it is resized")
    media_seconds: float = _setting(300.0, "seconds of all recordings, and of all videos, of a request")
    prompt_tokens: int = _setting(32_768, "tokens of a prompt with its media; the model's context is a limit as well")
    new_tokens: int = _setting(1024, "tokens of a reply; also the default")
    speech_characters: int = _setting(4096, "characters of a text to read aloud")
    drawings: int = _setting(4, "pictures to draw in a request")
    drawing_pixels: int = _setting(2048 * 2048, "pixels of a picture to draw")
    drawing_steps: int = _setting(50, "denoising steps of a picture to draw")


@dataclass(frozen=True)
class EngineSettings(Numbers):
    """How requests wait and are put together; the texts say what each is."""

    queue: int = _setting(64, "requests that may wait; further ones are answered by 429")
    batch: int = _setting(8, "text requests that are decoded at once")
    batch_tokens: int = _setting(65_536, "rows times tokens of a row, prompt and reply, of what is decoded at once")
    window_ms: float = _setting(5.0, "milliseconds to wait for more text requests to decode at once")
    retry_after: int = _setting(2, "seconds after which a client that got 429 is told to come again")


@dataclass(frozen=True)
class Site:
    """How the model is offered.

    Args:
        name: what clients ask for as `model`.
        api_key: what they must send as bearer token; None lets everybody in.
        transcription_prompt: instruction that goes with a recording to transcribe.
    """

    name: str = "ming"
    api_key: str | None = field(default=None, repr=False)
    transcription_prompt: str = (
        "Please recognize the language of this speech and transcribe it. Format: oral."  # the released wording
    )


__all__ = ["EngineSettings", "Limits", "Site"]
