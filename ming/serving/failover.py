"""A proxy before several replicas of the server: when a replica dies, another one continues its answers.

A request is read completely before a replica gets it, and goes to another replica when the first one dies. All
replicas answer the same request with the same bytes (`ForwardedRequest.id`), so that a stream, too, continues where it
broke off.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.types import Message, Receive, Scope, Send

from ming.serving.errors import ApiError, server_error
from ming.serving.forwarding import ForwardedRequest, read_body, wait_for_disconnect

logger = logging.getLogger(__name__)

AskReplica = Callable[[ForwardedRequest], AsyncGenerator[Message, None]]
QUEUE_FULL = 429


class BrokenAnswer(Exception):
    """An answer cannot be continued: another replica began it differently, or it has no end."""


class ResumableAnswer:
    """The part of an answer that the client already has; an answer that is repeated continues behind it.

    Args:
        send: to the client.
    """

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None
        self.ended = False
        self._count, self._digest = 0, hashlib.sha256()

    def begin(self) -> None:
        """The answer comes from its beginning."""
        self._position, self._repeated = 0, hashlib.sha256()

    async def put(self, message: Message) -> None:
        """Send the next message; bytes that the client already has are compared and left out.

        Raises:
            BrokenAnswer: they differ from those that the client has.
        """
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        known = body[: max(0, self._count - self._position)]
        self._repeated.update(known)
        self._position += len(known)
        is_caught_up = self._position >= self._count
        if (known and is_caught_up and self._repeated.digest() != self._digest.digest()) or not (is_caught_up or more):
            raise BrokenAnswer(f"another beginning than the {self._count} bytes that were sent")
        rest = body[len(known) :]
        if rest or not more:
            self._digest.update(rest)
            self._count += len(rest)
            self._position += len(rest)
            self.ended = not more
            await self._send({"type": "http.response.body", "body": rest, "more_body": more})

    async def _start(self, message: Message) -> None:
        if self.status is None:
            self.status = message["status"]
            await self._send(message)
        elif self.status != message["status"]:
            raise BrokenAnswer(f"status {message['status']} after {self.status}")


class FailoverProxy:
    """ASGI app that passes requests on to replicas.

    Args:
        ask: the messages of an answer by one of the replicas.
        lost: exceptions of `ask` that mean that the replica has died.
        attempts: how many replicas may die over one request.
        patience: seconds that a request waits for room at other replicas, once its own has died.
    """

    def __init__(self, ask: AskReplica, lost: tuple[type[Exception], ...], attempts: int = 5, patience: float = 120.0):
        self.ask, self.lost, self.attempts, self.patience = ask, lost, attempts, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/metrics":
            refusal = ApiError("/metrics: every replica counts for itself; Ray exports the metrics of all", status=404)
            await refusal.response()(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        request = ForwardedRequest(
            scope["method"],
            scope["path"],
            scope["query_string"],
            tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            body,
            secrets.token_hex(12),
            int(time.time()),
        )
        answer = ResumableAnswer(send)
        work = asyncio.ensure_future(self._answer(request, answer))
        leaving = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
            error = work.exception() if work.done() else None
            if error is None:
                return
            if answer.status is not None:
                raise error  # after the first bytes only the end of the connection can report an error
            logger.error("%s %s", request.method, request.path, exc_info=error)
            await server_error().response()(scope, receive, send)
        finally:
            work.cancel()
            leaving.cancel()

    async def _answer(self, request: ForwardedRequest, answer: ResumableAnswer) -> None:
        deaths, deadline = 0, time.monotonic() + self.patience
        while True:
            answer.begin()
            try:
                seconds = await self._ask_once(request, answer, may_wait=deaths > 0 and time.monotonic() < deadline)
            except self.lost as error:
                deaths += 1
                if deaths == self.attempts:
                    raise
                kind, name = type(error).__name__, f"{request.method} {request.path} {request.id}"
                logger.warning("%s: a replica died, asking another one (%s)", name, kind)
                continue
            if seconds is None:
                return
            await asyncio.sleep(seconds)

    async def _ask_once(self, request: ForwardedRequest, answer: ResumableAnswer, may_wait: bool) -> float | None:
        """Send an answer, or return the seconds to wait if the replica's queue is full and the request may wait."""
        async with aclosing(self.ask(request)) as messages:
            async for message in messages:
                if may_wait and message.get("status") == QUEUE_FULL:
                    return float(dict(message["headers"]).get(b"retry-after", b"1"))
                await answer.put(message)
                if answer.ended:
                    return None
        raise BrokenAnswer("the answer ended before its last message")


__all__ = ["BrokenAnswer", "FailoverProxy"]
