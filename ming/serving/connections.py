"""The limits of a connection, which come before those of a request: how many, how slow, how large a head.

uvicorn waits for ever for the head of a request, and for a client that does not read. The parser is h11, which is
there with every uvicorn: which one parses must not depend on what else is installed.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ming.serving.settings import Limits

HEAD_BYTES = 64 << 10  # of the first line and the headers of a request
REFUSALS = {
    408: b"HTTP/1.1 408 Request Timeout\r\n",
    431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\n",
}


class LimitedConnection(H11Protocol):
    """uvicorn's HTTP protocol, which ends a connection beyond the limits.

    Args:
        limits: `connections`, `head_seconds` and `stall_seconds` count here.
        options: of uvicorn's protocol.
    """

    def __init__(self, limits: Limits, **options: Any):
        super().__init__(**options)
        self._limits = limits
        self.conn = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._head_bytes = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: Any) -> None:
        """A client came."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(503)
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        for name in [*self._timers]:
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or a body."""
        if self.transport.is_closing():
            return
        was_reading_body = self._is_reading_body()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_busy():
            self._stop("head")
        elif self._is_reading_body():
            self._head_bytes = 0
        elif was_reading_body:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or has a head without end."""
        if not self._is_busy() and self._head_bytes > HEAD_BYTES:
            self._refuse(431)
        else:
            super().send_400_response(msg)

    def on_response_complete(self) -> None:
        """An answer was handed over; the next request may come."""
        super().on_response_complete()
        if not self._is_busy():
            self._await_head()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is made."""
        super().pause_writing()
        self._start("stall", self._limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop("stall")
        super().resume_writing()

    def _is_busy(self) -> bool:
        """Whether the head of a request is complete and its answer is not."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_reading_body(self) -> bool:
        """Whether a body is on its way. It may be that of a request which was answered without it: read to its end,
        since clients that are still sending do not look for an answer."""
        return self.conn.their_state is h11.SEND_BODY

    def _await_head(self) -> None:
        self._head_bytes = 0
        seconds = self._limits.body_seconds if self._is_reading_body() else self._limits.head_seconds
        self._start("head", seconds, self._give_up)

    def _give_up(self) -> None:
        """No request came. A connection that was idle, or is closing, has nothing to be told."""
        if self._head_bytes and not self.transport.is_closing():
            self._refuse(408)
        else:
            self.transport.abort()

    def _refuse(self, status: int) -> None:
        self.transport.write(REFUSALS[status] + b"connection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
        self._start("head", self._limits.stall_seconds, self.transport.abort)  # unless it reads that

    def _start(self, name: str, seconds: float, then: Any) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, then)

    def _stop(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()


__all__ = ["HEAD_BYTES", "LimitedConnection"]
