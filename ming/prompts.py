"""Prompts and message layouts of the released examples, which the model was trained with."""

from collections.abc import Mapping, Sequence
from typing import Any

TRANSCRIPTION_PROMPT = "Please recognize the language of this speech and transcribe it. Format: oral."


def message_content(text: str | None, media: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The content of a user message in the released order: images, videos, text, audio.

    Args:
        text: left out when None or empty.
        media: sources by medium, "image", "video" and "audio"; media may be left out.
    """

    def items(medium: str) -> list[dict[str, Any]]:
        return [{"type": medium, medium: source} for source in media.get(medium, ())]

    question = [{"type": "text", "text": text}] if text else []
    return [*items("image"), *items("video"), *question, *items("audio")]


__all__ = ["TRANSCRIPTION_PROMPT", "message_content"]
