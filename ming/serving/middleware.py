"""What every HTTP request passes first: API key, size of the body, room in the queue; answers are counted."""

import hmac
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ming.serving.errors import ApiError
from ming.serving.metrics import Metrics

OPEN_PATHS = ("/health", "/metrics")


class BodyTooLarge(ApiError):
    """A body is larger than allowed."""

    def __init__(self, limit: int):
        super().__init__(
            f"the body is larger than {limit} bytes; send less, or smaller media", status=413, code="body_too_large"
        )


class AdmissionMiddleware:
    """ASGI middleware that admits requests.

    Args:
        app: answers the admitted requests.
        body_bytes: limit of a body.
        metrics: counts answers by route and status.
        check_room: raises `ApiError` while there is no room for a request with a body, before the body is read.
        api_key: what clients must send as bearer token; None lets everybody in.
    """

    def __init__(
        self,
        app: ASGIApp,
        body_bytes: int,
        metrics: Metrics,
        check_room: Callable[[], None],
        api_key: str | None = None,
    ):
        self.app, self.body_bytes, self.metrics, self.check_room = app, body_bytes, metrics, check_room
        self.expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, counted)
            return
        try:
            await self.app(scope, self._limited(receive), counted)
        except Exception:  # the server around this app answers it
            self._count(scope, 500)
            raise

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
        if length.isdigit() and int(length) > self.body_bytes:
            raise BodyTooLarge(self.body_bytes)
        if scope["method"] == "POST":
            self.check_room()

    def _limited(self, receive: Receive) -> Receive:
        """Counts the bytes of a body that does not give its length beforehand."""
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.body_bytes:
                raise BodyTooLarge(self.body_bytes)
            return message

        return limited


__all__ = ["AdmissionMiddleware"]
