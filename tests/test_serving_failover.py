"""The proxy before replicas: what it passes on, and what it does when the replica that answers dies."""

import asyncio
import json

import httpx
import pytest
from starlette.responses import JSONResponse, StreamingResponse

from ming.serving.failover import FailoverProxy
from ming.serving.forwarding import IDENTITY, answer


class Died(Exception):
    """Of a replica."""


class Replicas:
    """Replicas of an app, of which the first ones die after some messages of their answer.

    Args:
        app: what every replica runs.
        deaths: for each request, after how many messages its replica dies.
    """

    def __init__(self, app, *deaths: int):
        self.app, self.deaths, self.asked = app, list(deaths), []

    async def ask(self, request):
        self.asked.append(request)
        left = self.deaths.pop(0) if self.deaths else None
        if left == 0:
            raise Died
        async for message in answer(self.app, request):
            yield message
            left = left and left - 1
            if left == 0:
                raise Died


async def echo(scope, receive, send):
    """What reached the app, in plain data."""
    body = (await receive())["body"]
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    seen = {key: scope[key] for key in ("method", "path")} | scope["extensions"][IDENTITY]
    seen |= {"query": scope["query_string"].decode(), "body": body.decode(), "key": headers.get("authorization")}
    await JSONResponse(seen, 202, {"X-Seen": "yes"})(scope, receive, send)


def letters(first: str = "a"):
    """An app that streams pieces; `first` is its first one."""

    async def app(scope, receive, send):
        async def pieces():
            for piece in (first, "bc", "d", "efg"):
                yield piece.encode()

        await StreamingResponse(pieces())(scope, receive, send)

    return app


def ask(replicas: Replicas, method: str = "POST", path: str = "/v1/x?y=1", **options):
    """One request through a proxy."""
    proxy = FailoverProxy(replicas.ask, (Died,), **options)

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(proxy), base_url="http://proxy") as client:
            return await client.request(method, path, content=b"hello", headers={"Authorization": "Bearer k"})

    return asyncio.run(go())


def test_a_request_reaches_the_app_as_it_was_sent():
    answer = ask(Replicas(echo))
    seen = answer.json()
    assert answer.status_code == 202 and answer.headers["X-Seen"] == "yes"
    assert seen.pop("created") > 1e9 and len(seen.pop("id")) == 24
    assert seen == {"method": "POST", "path": "/v1/x", "query": "y=1", "body": "hello", "key": "Bearer k"}


@pytest.mark.parametrize("deaths", [(0,), (1,), (2,), (3, 1), (4, 2, 3), (0, 0, 0, 0)])
def test_an_answer_goes_on_where_the_dead_replica_broke_off(deaths):
    replicas = Replicas(letters(), *deaths)
    answer = ask(replicas)
    assert answer.status_code == 200 and answer.text == "abcdefg"
    assert len(replicas.asked) == len(deaths) + 1 and len(set(map(repr, replicas.asked))) == 1


def test_other_cuts_of_the_same_bytes_go_on():
    async def cut_otherwise(scope, receive, send):
        async def pieces():
            for piece in ("abcd", "ef", "g"):
                yield piece.encode()

        await StreamingResponse(pieces())(scope, receive, send)

    apps = iter([letters(), cut_otherwise])
    replicas = Replicas(lambda scope, receive, send: next(apps)(scope, receive, send), 3)
    assert ask(replicas).text == "abcdefg"


def test_replicas_that_all_die_are_an_error():
    answer = ask(Replicas(letters(), 0, 0, 0), attempts=3)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"


def test_an_answer_that_differs_is_broken_off():
    apps = iter([letters(), letters("A")])
    replicas = Replicas(lambda scope, receive, send: next(apps)(scope, receive, send), 2)
    with pytest.raises(Exception, match="another beginning than the 1 bytes"):
        ask(replicas)


def test_an_answer_without_an_end_is_an_error():
    async def fails(scope, receive, send):
        raise ValueError("of the app")

    assert ask(Replicas(fails)).status_code == 500


def test_a_full_replica_is_told_to_the_client_but_not_to_a_request_that_was_let_in():
    calls = []

    async def full_at_first(scope, receive, send):
        calls.append(1)
        if len(calls) == 1:
            await JSONResponse({}, 429, {"Retry-After": "0.01"})(scope, receive, send)
        else:
            await letters()(scope, receive, send)

    assert ask(Replicas(full_at_first)).status_code == 429
    calls.clear()
    replicas = Replicas(full_at_first, 0)
    assert ask(replicas).text == "abcdefg" and len(replicas.asked) == 3
    calls.clear()
    assert ask(Replicas(full_at_first, 0), patience=0.0).status_code == 429


def test_a_client_that_leaves_cancels_the_request():
    left, cancelled, began = asyncio.Event(), [], []

    async def endless(scope, receive, send):
        began.append(1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def go():
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive():
            if message := next(messages, None):
                return message
            while not began:
                await asyncio.sleep(0)
            left.set()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        await FailoverProxy(Replicas(endless).ask, (Died,))(scope, receive, None)
        await asyncio.sleep(0.01)

    asyncio.run(go())
    assert left.is_set() and cancelled == [1]


def test_metrics_are_the_replicas():
    answer = ask(Replicas(echo), "GET", "/metrics")
    assert answer.status_code == 404 and "Ray" in json.loads(answer.text)["error"]["message"]
