"""Requests by the server's OpenAPI document, made by schemathesis and sent through ASGI."""

import functools
import json
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from starlette.testclient import TestClient

from ming.serving.server import create_app
from ming.serving.settings import EngineSettings, Limits, Site

from .arguments import omni
from .conversations import processor
from .outcomes import Broken, expect

LIMITS = Limits(body_bytes=400_000, new_tokens=4, speech_characters=40, drawings=2, drawing_steps=3, media_seconds=6.0)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]


@functools.cache
def client() -> TestClient:
    """A client of an app that runs until the process ends; schemathesis would start and stop it with every request."""
    app = create_app(omni(), processor(), LIMITS, EngineSettings(queue=8, batch=2), Site("omni"))
    return TestClient(app, raise_server_exceptions=False).__enter__()


@functools.cache
def schema() -> Any:
    return schemathesis.openapi.from_dict(client().get("/openapi.json").json())


def cases() -> st.SearchStrategy:
    """Requests to all routes, those with a wrong body among them."""
    modes = schemathesis.GenerationMode
    operations = [result.ok() for result in schema().get_all_operations()]
    return st.one_of(
        *(
            operation.as_strategy(generation_mode=mode)
            for operation in operations
            for mode in (modes.POSITIVE, modes.NEGATIVE)
        )
    )


def _as_part(value: Any) -> Any:
    """A part of a form as httpx takes it: numbers are texts there."""
    if isinstance(value, tuple):
        return (value[0], _as_part(value[1]), *value[2:])
    return value if isinstance(value, (str, bytes)) or hasattr(value, "read") else str(value)


def try_case(case: Any) -> None:
    """Send a request; the answer is documented, and an error has a message."""
    request = case.as_transport_kwargs(base_url="http://testserver")
    if isinstance(request.get("files"), list):
        request["files"] = [(name, _as_part(value)) for name, value in request["files"]]
    response = client().request(**request)
    response.request.read()  # schemathesis shows it in its failures
    try:
        case.validate_response(response, checks=CHECKS)
    except FailureGroup as failures:
        found = [str(failure) for failure in failures.exceptions]
        raise Broken(
            f"{case.method} {case.path} -> {response.status_code} {response.content[:200]!r}: {found}"
        ) from None
    if response.status_code >= 400:
        message = json.loads(response.content)["error"]["message"]
        expect(len(message) >= 10, "an error says what is wrong", message)
        raise ValueError(message)
