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
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of_request(cls, model: str, identity: dict[str, Any]) -> "ChatResponse":
        """The answer to a request with `ForwardedRequest.id` and `created`, or with an empty identity."""
        if not identity:
            return cls(model)
        return cls(model, f"chatcmpl-{identity['id']}", identity["created"])

    @property
    def audio_id(self) -> str:
        return f"audio-{self.id}"

    def whole(self, text: str, finished: Finished, audio: bytes | None = None) -> dict[str, Any]:
        """The answer at once; with `audio`, an audio file, its text is the transcript."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if audio is not None:
            # The server keeps no replies, so a client cannot refer to this audio by its id: it expires at once.
            speech = {
                "id": self.audio_id,
                "data": encode_base64(audio),
                "expires_at": self.created,
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
