"""A door before several replicas of the server: no request that was let in is lost with the replica that had it.

A request is read completely before a replica gets it, and asked again of another one when its replica dies. Answers to
the same request are the same bytes (`Forwarded.id`), so that also a stream goes on where it broke off.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.types import Message, Receive, Scope, Send

from ming.serving.asgi import Forwarded, disconnected, read_body
from ming.serving.errors import ApiError, server_error

logger = logging.getLogger(__name__)

Ask = Callable[[Forwarded], AsyncGenerator[Message, None]]
FULL = 429


class BrokenAnswer(Exception):
    """An answer cannot be continued: another replica began it differently, or it has no end."""


class Delivery:
    """What a client has of an answer, so that a repeated one goes on behind it.

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
        """The next message of the answer; what the client has already is compared and left out.

        Raises:
            BrokenAnswer: it is not what the client has.
        """
        if message["type"] == "http.response.start":
            if self.status is None:
                self.status = message["status"]
                await self._send(message)
            elif self.status != message["status"]:
                raise BrokenAnswer(f"status {message['status']} after {self.status}")
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


class Relay:
    """ASGI app that passes requests on to replicas.

    Args:
        ask: the messages of an answer by one of the replicas.
        lost: exceptions of `ask` which say that the replica has died.
        attempts: how many replicas may die over one request.
        patience: seconds that a request waits for room at other replicas, once its own has died.
    """

    def __init__(self, ask: Ask, lost: tuple[type[Exception], ...], attempts: int = 5, patience: float = 120.0):
        self.ask, self.lost, self.attempts, self.patience = ask, lost, attempts, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/metrics":
            error = ApiError(
                "/metrics: every replica counts for itself; ask Ray, which exports the cluster's", status=404
            )
            await error.response()(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        request = Forwarded(
            scope["method"],
            scope["path"],
            scope["query_string"],
            tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            body,
            secrets.token_hex(12),
            int(time.time()),
        )
        delivery = Delivery(send)
        tasks = [asyncio.ensure_future(self._answer(request, delivery)), asyncio.ensure_future(disconnected(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                return
            if error := tasks[0].exception():
                if delivery.status is not None:
                    raise error  # behind the first bytes only the connection's end can tell the client
                logger.error("%s %s", request.method, request.path, exc_info=error)
                await server_error().response()(scope, receive, send)
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, request: Forwarded, delivery: Delivery) -> None:
        deaths, deadline = 0, time.monotonic() + self.patience
        while True:
            delivery.begin()
            try:
                seconds = await self._ask_once(request, delivery, may_wait=deaths > 0 and time.monotonic() < deadline)
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

    async def _ask_once(self, request: Forwarded, delivery: Delivery, may_wait: bool) -> float | None:
        """Deliver an answer; or the seconds after which to ask again, where a replica is full and we may wait."""
        async with aclosing(self.ask(request)) as answer:
            async for message in answer:
                if may_wait and message.get("status") == FULL:
                    return float(dict(message["headers"]).get(b"retry-after", b"1"))
                await delivery.put(message)
                if delivery.ended:
                    return None
        raise BrokenAnswer("the answer ended before its last message")


__all__ = ["BrokenAnswer", "Relay"]
