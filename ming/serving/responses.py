"""Answers in OpenAI's shapes, as plain data, and their lines in event streams."""

import base64
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from ming.serving.engine_jobs import Finished

END_OF_STREAM = b"data: [DONE]\n\n"


def server_sent_event(data: dict[str, Any]) -> bytes:
    """One event of a stream, `data: <JSON>` and an empty line.

    Not FastAPI's `EventSourceResponse`: it adds keep-alive lines by the clock, and replicas must send equal bytes.
    """
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def usage(finished: Finished) -> dict[str, int]:
    """Token counts of a reply."""
    prompt, completion = finished.prompt_tokens, finished.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


@dataclass
class ChatResponse:
    """The parts of a chat's answer that stay the same through a stream.

    Args:
        model: the served name.
        id, created: name and second (Unix time) of the answer.
        audio_seconds: how long its audio may be named in a conversation.
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    audio_seconds: int = 0

    @classmethod
    def of_request(cls, model: str, identity: dict[str, Any], audio_seconds: int) -> "ChatResponse":
        """The answer to a request with `ForwardedRequest.id` and `created`, or with an empty identity.

        The audio of a forwarded one expires at once, since the next request may go to another process.
        """
        if not identity:
            return cls(model, audio_seconds=audio_seconds)
        return cls(model, f"chatcmpl-{identity['id']}", identity["created"])

    @property
    def audio_id(self) -> str:
        return f"audio-{self.id}"

    @property
    def expires_at(self) -> int:
        """The second (Unix time) from which `audio_id` is not known any more."""
        return self.created + self.audio_seconds

    def whole(self, text: str, finished: Finished, audio: bytes | None = None) -> dict[str, Any]:
        """The answer at once; with `audio`, an audio file, its text is the transcript."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if audio is not None:
            speech = {
                "id": self.audio_id,
                "data": encode_base64(audio),
                "expires_at": self.expires_at,
                "transcript": text,
            }
            message |= {"content": None, "audio": speech}
        choice = {"index": 0, "message": message, "finish_reason": finished.reason, "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(finished)}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """A piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return server_sent_event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def usage_chunk(self, finished: Finished) -> bytes:
        """The last piece, for clients that ask for token counts."""
        return server_sent_event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(finished)})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


__all__ = ["END_OF_STREAM", "ChatResponse", "encode_base64", "server_sent_event", "usage"]
