"""What every HTTP request passes first: API key, size of the body, room in the queue; answers are counted."""

import asyncio
import hmac
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ming.serving.errors import ApiError
from ming.serving.metrics import Metrics
from ming.serving.settings import Limits

OPEN_PATHS = ("/health", "/metrics")


class BodyTooLarge(ApiError):
    """A body is larger than allowed."""

    def __init__(self, limit: int):
        super().__init__(
            f"the body is larger than {limit} bytes; send less, or smaller media", status=413, code="body_too_large"
        )


class BodyTooSlow(ApiError):
    """A body did not come in time."""

    def __init__(self, seconds: float):
        super().__init__(
            f"the body had not come after {seconds:g} s; send less, or over a faster line",
            status=408,
            code="body_too_slow",
            headers={"Connection": "close"},
        )


class TooManyBodies(ApiError):
    """The bodies of all requests together are too large."""

    def __init__(self) -> None:
        super().__init__(
            "other requests fill the memory for bodies; try again",
            status=503,
            code="busy",
            kind="server_error",
            headers={"Retry-After": "2"},
        )


class AdmissionMiddleware:
    """ASGI middleware that admits requests.

    Args:
        app: answers the admitted requests.
        limits: `body_bytes`, `body_seconds` and `all_bodies_bytes` count here.
        metrics: counts answers by route and status.
        check_room: raises `ApiError` while there is no room for a request with a body, before the body is read.
        api_key: what clients must send as bearer token; None lets everybody in.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        check_room: Callable[[], None],
        api_key: str | None = None,
    ):
        self.app, self.limits, self.metrics, self.check_room = app, limits, metrics, check_room
        self.held_bytes = 0
        self.expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def counted(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                self._count(scope, message["status"])
            await send(message)

        body = _Body(receive, self.limits, self)
        try:
            self._check(scope)
            await self.app(scope, body.receive, counted)
        except ApiError as error:
            if has_begun:
                raise
            await error.response()(scope, receive, counted)
        except Exception:  # the server around this app answers it
            self._count(scope, 500)
            raise
        finally:
            self.held_bytes -= body.seen

    def _count(self, scope: Scope, status: int) -> None:
        # The route, not the requested path, of which there could be any number.
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, str(status)).inc()

    def _check(self, scope: Scope) -> None:
        """Raise an `ApiError` for a wrong key, a body that is too large, or a full queue."""
        headers = dict(scope["headers"])
        if self.expected is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                raise ApiError(
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            raise BodyTooLarge(self.limits.body_bytes)
        if scope["method"] == "POST":
            self.check_room()


class _Body:
    """A body on its way: its bytes are counted, since it need not tell its length beforehand, and the time.

    Args:
        receive: of the request.
        limits: see there.
        owner: counts the bytes of all bodies as `held_bytes`.
    """

    def __init__(self, receive: Receive, limits: Limits, owner: AdmissionMiddleware):
        self._receive, self._limits, self._owner = receive, limits, owner
        self._deadline: float | None = asyncio.get_running_loop().time() + limits.body_seconds
        self.seen = 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            ApiError: the body is too large or too slow, or there are too many others.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise BodyTooSlow(self._limits.body_seconds) from error
        size = len(message.get("body", b""))
        self.seen += size
        self._owner.held_bytes += size
        if not message.get("more_body", False):
            self._deadline = None  # what follows is the end of the connection, whenever it comes
        if self.seen > self._limits.body_bytes:
            raise BodyTooLarge(self._limits.body_bytes)
        if self._owner.held_bytes > self._limits.all_bodies_bytes:
            raise TooManyBodies()
        return message


__all__ = ["AdmissionMiddleware"]
