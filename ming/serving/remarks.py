"""Warnings about the media of a request, such as a file that is cut off, for the client who sent it.

Who calls the package sees them in the log. A client does not, so each answer repeats those of its own request in the
header `X-Ming-Warnings`: a JSON list of texts, in ASCII.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Ming-Warnings"
MOST_REMARKS = 8  # clients refuse heads of 64 KiB
MOST_CHARACTERS = 500

# Threads that work for a request share its list, since `asyncio.to_thread` copies the context that refers to it.
_of_request: ContextVar[list[str] | None] = ContextVar("warnings of a request", default=None)


class _Collector(logging.Handler):
    """Adds warnings to the request in whose context they are logged, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        remarks = _of_request.get()
        if remarks is not None and len(remarks) < MOST_REMARKS:
            remarks.append(record.getMessage()[:MOST_CHARACTERS])


@contextmanager
def collecting() -> Iterator[None]:
    """Collect the warnings of this package while the context is open."""
    collector, own = _Collector(logging.WARNING), logging.getLogger("ming")
    own.addHandler(collector)
    try:
        yield
    finally:
        own.removeHandler(collector)


class RemarksMiddleware:
    """ASGI middleware that gives the answer of a request the warnings about it.

    Args:
        app: answers the request; it reads media before its answer begins.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        remarks: list[str] = []

        async def remarked(message: Message) -> None:
            if message["type"] == "http.response.start" and remarks:
                header = (HEADER.lower().encode(), json.dumps(remarks).encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        token = _of_request.set(remarks)
        try:
            await self.app(scope, receive, remarked)
        finally:
            _of_request.reset(token)
