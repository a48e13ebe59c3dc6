"""Answers in OpenAI's shapes, as plain data, and lines of event streams."""

import base64
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from ming.serving.jobs import Finished

END_OF_STREAM = b"data: [DONE]\n\n"


def sse(data: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def usage(finished: Finished) -> dict[str, int]:
    """Token counts of a reply."""
    prompt, completion = finished.prompt_tokens, finished.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


@dataclass
class ChatReply:
    """The parts of a chat's answer that stay the same through a stream.

    Args:
        model: the served name.
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def named(cls, model: str, identity: dict[str, Any]) -> "ChatReply":
        """The answer to a request that has a name, or to one that has none: `Forwarded.id` and `created`."""
        if not identity:
            return cls(model)
        return cls(model, f"chatcmpl-{identity['id']}", identity["created"])

    @property
    def audio_id(self) -> str:
        return f"audio-{self.id}"

    def whole(self, text: str, finished: Finished, audio: bytes | None = None) -> dict[str, Any]:
        """The answer at once; with `audio`, a sound file, its text is the transcript."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if audio is not None:
            # Nothing is kept here, so that a reply cannot be asked for again: it expires as it is made.
            sound = {"id": self.audio_id, "data": encode_base64(audio), "expires_at": self.created, "transcript": text}
            message |= {"content": None, "audio": sound}
        choice = {"index": 0, "message": message, "finish_reason": finished.reason, "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(finished)}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """A piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return sse({**self._head("chat.completion.chunk"), "choices": [choice]})

    def usage_chunk(self, finished: Finished) -> bytes:
        """The last piece, for clients that ask for token counts."""
        return sse({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(finished)})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


__all__ = ["END_OF_STREAM", "ChatReply", "encode_base64", "sse", "usage"]
