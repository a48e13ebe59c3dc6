"""HTTP requests as plain data that can travel to another process, and the app that answers them there."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive

logger = logging.getLogger(__name__)

IDENTITY = "ming.identity"  # an extension of the ASGI scope, which no client can write


@dataclass(frozen=True)
class ForwardedRequest:
    """A request that was read completely.

    Args:
        method, path, query: of its first line; `query` as bytes without the question mark.
        headers: pairs of bytes.
        body: all of it.
        id, created: name of the request and second of its arrival (Unix time). An answer takes its own name and its
            random numbers from them, so that two processes give the same bytes.
    """

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    id: str
    created: int

    def scope(self) -> dict[str, Any]:
        """The request as an ASGI scope."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": list(self.headers),
            "client": None,
            "server": None,
            "extensions": {IDENTITY: {"id": self.id, "created": self.created}},
        }


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client leaves before its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def answer(app: ASGIApp, request: ForwardedRequest) -> AsyncIterator[Message]:
    """Messages of an app's answer, as they come. Closing the iterator cancels the request.

    The error of an app that fails is logged; its answer may then lack its last message.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            await asyncio.Event().wait()  # a client that leaves is a cancelled task here
        is_read = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    async def work() -> None:
        try:
            await app(request.scope(), receive, send)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(work())
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        task.cancel()


__all__ = ["IDENTITY", "ForwardedRequest", "answer", "read_body", "wait_for_disconnect"]
