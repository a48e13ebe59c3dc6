"""Clients that are slow, many or endless: raw connections to a server with small limits and no model."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from ming.serving.connections import HEAD_BYTES, LimitedConnection
from ming.serving.errors import ApiError
from ming.serving.metrics import Metrics
from ming.serving.middleware import AdmissionMiddleware
from ming.serving.settings import Limits

PATIENCE = 30.0  # seconds; only reached by failing tests
LIMITS = Limits(
    connections=4, head_seconds=0.6, stall_seconds=0.6, body_seconds=0.8, body_bytes=4000, all_bodies_bytes=6000
)


def small_app() -> FastAPI:
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def pieces():
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    async def refuse(request: Request, error: ApiError):
        return error.response()

    app.add_exception_handler(ApiError, refuse)
    app.add_middleware(AdmissionMiddleware, limits=LIMITS, metrics=Metrics(), check_room=lambda: None)
    return app


class Served:
    """The app behind uvicorn, as `ming serve` runs it."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        config = uvicorn.Config(small_app(), log_level="warning", http=partial(LimitedConnection, LIMITS), ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    @contextmanager
    def connection(self, data: bytes = b"", **options):
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            for name, value in options.items():
                connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
            connection.sendall(data)
            yield connection

    def post(self, content) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{self.port}/echo", content=content, timeout=PATIENCE)


@pytest.fixture(scope="module")
def served():
    served = Served()
    yield served
    served.server.should_exit = True
    served.thread.join(PATIENCE)
    assert not served.thread.is_alive()


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: a", *headers, "", ""]).encode()


def test_a_client_that_says_nothing_is_let_go(served):
    with served.connection() as connection:
        assert read_all(connection) == b""
    assert served.post(b"abc").json() == 3


@pytest.mark.parametrize("first", [b"", head("/echo", "content-length: 1") + b"a"], ids=["first", "second"])
def test_a_head_that_comes_drop_by_drop_is_refused(served, first):
    """The first one of a connection, and one behind an answered request."""
    with served.connection(first + b"POST /echo HTTP/1.1\r\n") as connection:
        sender = threading.Thread(target=drip, args=(connection, b"a: b\r\n"))
        sender.start()
        answer = read_all(connection)
        sender.join()
    assert answer.count(b"HTTP/1.1 ") == 1 + bool(first) and b" 408 " in answer


def drip(connection: socket.socket, drop: bytes) -> None:
    """Drop after drop until the server has enough."""
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            connection.sendall(drop)
            time.sleep(0.05)
    except OSError:
        pass


def test_a_head_without_end_is_refused(served):
    """One of less than the limit is long, but complete."""
    cookies = [f"cookie: {'b' * 8000}"] * (HEAD_BYTES // 8100)
    with served.connection(head("/echo", "content-length: 1", *cookies) + b"a") as connection:
        assert b" 200 " in connection.recv(65536)
    with served.connection(b"POST /echo HTTP/1.1\r\n") as connection:
        sent = 0
        try:
            while sent < 100 * HEAD_BYTES:
                sent += connection.send(b"a: " + b"b" * 8000 + b"\r\n")
        except OSError:
            pass
        answer = read_all(connection)
    assert sent < 100 * HEAD_BYTES and (b" 431 " in answer or not answer)


def test_a_body_that_comes_drop_by_drop_is_refused(served):
    for header in ("content-length: 1000", "transfer-encoding: chunked"):
        drop = b"a" if "length" in header else b"1\r\na\r\n"
        with served.connection(head("/echo", header)) as connection:
            sender = threading.Thread(target=drip, args=(connection, drop))
            sender.start()
            answer = read_all(connection)
            sender.join()
        assert b" 408 " in answer and b"body_too_slow" in answer


def test_lengths_that_lie(served):
    """More than told is another request, which is none; less than told does not come in time; chunks count."""
    with served.connection(head("/echo", "content-length: 3", "connection: close") + b"a" * 100_000) as connection:
        answer = read_all(connection)
    assert b" 200 " in answer and answer.count(b" 200 ") == 1
    with served.connection(head("/echo", "content-length: 10") + b"abc") as connection:
        assert b" 408 " in read_all(connection)
    with served.connection(head("/echo", "content-length: 5001")) as connection:
        assert b" 413 " in connection.recv(65536)
    assert served.post(iter([b"a" * 3000, b"a" * 3000])).status_code == 413
    for value in ("-1", "1e9", "0x10"):
        with served.connection(head("/echo", f"content-length: {value}")) as connection:
            assert b" 400 " in read_all(connection)


def answers_of(connection: socket.socket, number: int) -> bytes:
    """What comes until so many answers have begun, and a moment longer."""
    data, deadline = b"", time.monotonic() + PATIENCE
    while data.count(b"HTTP/1.1 ") < number and time.monotonic() < deadline:
        data += connection.recv(65536)
    connection.settimeout(0.1)
    with suppress(TimeoutError):
        data += connection.recv(65536)
    connection.settimeout(PATIENCE)
    return data


@pytest.mark.parametrize("pause", [0.0, 1.1 * LIMITS.head_seconds], ids=["at once", "slowly"])
def test_a_body_that_follows_its_refusal_is_no_head(served, pause):
    """A client sends on after a 429 or 413: what it sends is read, and its connection serves the next request."""
    size = 3 * HEAD_BYTES
    with served.connection(head("/echo", f"content-length: {size}")) as connection:
        assert b" 413 " in answers_of(connection, 1)
        connection.sendall(b"a" * (size // 2))
        time.sleep(pause)
        connection.sendall(b"a" * (size - size // 2))
        connection.sendall(head("/echo", "content-length: 3") + b"abc")
        answer = answers_of(connection, 1)
    assert answer.count(b"HTTP/1.1 ") == 1 and b" 200 " in answer and answer.endswith(b"3")


def test_a_refused_body_without_end_is_cut_off(served):
    with served.connection(head("/echo", "content-length: 100000000")) as connection:
        sender = threading.Thread(target=drip, args=(connection, b"a"))
        sender.start()
        answer = read_all(connection)
        sender.join()
    assert answer.count(b"HTTP/1.1 ") == 1 and b" 413 " in answer


def test_bodies_of_all_requests_have_a_limit(served):
    with served.connection(head("/echo", "content-length: 4000") + b"a" * 3900) as connection:
        deadline = time.monotonic() + PATIENCE
        while (answer := served.post(b"a" * 3900)).status_code != 503 and time.monotonic() < deadline:
            time.sleep(0.01)  # the first body is still on its way into the server
        connection.sendall(b"a" * 100)
        assert b" 200 " in connection.recv(65536)
    assert answer.json()["error"]["code"] == "busy" and answer.headers["retry-after"] == "2"
    assert served.post(b"a" * 3900).json() == 3900


def test_a_client_that_stops_reading_is_cut_off(served):
    with served.connection(SO_RCVBUF=4096) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        deadline = time.monotonic() + PATIENCE
        while len(served.server.server_state.connections) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not served.server.server_state.connections


def test_connections_beyond_the_limit_are_refused_and_those_before_answered(served):
    with served.connection() as first, served.connection(), served.connection(), served.connection():
        with served.connection() as fifth:
            assert b" 503 " in read_all(fifth)
        first.sendall(head("/echo", "content-length: 2") + b"ab")
        assert b" 200 " in first.recv(65536)
    deadline = time.monotonic() + PATIENCE
    while served.server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.02)
    assert served.post(b"abcd").json() == 4


def test_no_web_socket(served):
    upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-key: YQ==", "sec-websocket-version: 13")
    with served.connection(head("/echo", *upgrade, "content-length: 0")) as connection:
        assert b" 101 " not in read_all(connection)
