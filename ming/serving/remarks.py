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

# The warnings of a request and who collects them. Threads that work for the request share its list, since
# `asyncio.to_thread` copies the context that refers to it.
_of_request: ContextVar[tuple["_Collector", list[str]] | None] = ContextVar("warnings of a request", default=None)


class _Collector(logging.Handler):
    """Adds warnings to the request in whose context they are logged, if it is one of this collector's app."""

    def emit(self, record: logging.LogRecord) -> None:
        collector, remarks = _of_request.get() or (None, [])
        if collector is self and len(remarks) < MOST_REMARKS:
            remarks.append(record.getMessage()[:MOST_CHARACTERS])


class RemarksMiddleware:
    """ASGI middleware that collects the warnings of this package and gives each answer those about its request.

    It collects from the start of the app to its shutdown, also beside other apps of the process.

    Args:
        app: answers the request; it reads media before its answer begins.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self.collector = _Collector(logging.WARNING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            with self._collecting():
                await self.app(scope, receive, send)
            return
        remarks: list[str] = []

        async def remarked(message: Message) -> None:
            if message["type"] == "http.response.start" and remarks:
                header = (HEADER.lower().encode(), json.dumps(remarks).encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        token = _of_request.set((self.collector, remarks))
        try:
            await self.app(scope, receive, remarked)
        finally:
            _of_request.reset(token)

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        own = logging.getLogger("ming")
        own.addHandler(self.collector)
        try:
            yield
        finally:
            own.removeHandler(self.collector)
