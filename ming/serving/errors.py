"""Errors of the API: one exception, and OpenAI's shape of it."""

from typing import Any, TypeVar

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

SHOWN_CHARACTERS = 80
INTERNAL_NAMES = ("body", "plain", "parts")  # parts of places that FastAPI and our own tags add

Model = TypeVar("Model", bound=BaseModel)


class ApiError(HTTPException):
    """An error that a client receives.

    Args:
        message: names the wrong value and the remedy.
        param: the field of the request that is wrong.
        status: HTTP status.
        code: a word for programs.
        kind: OpenAI's `type`.
        headers: of the answer.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ):
        # An HTTPException, since FastAPI lets only these pass while it reads a body.
        super().__init__(status, message, headers)
        self.message, self.param, self.code, self.kind = message, param, code, kind

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as an answer."""
        return JSONResponse(self.body(), status_code=self.status_code, headers=self.headers)


def server_error(message: str = "the server failed at this request; its log says why") -> ApiError:
    """The server failed, not the client."""
    return ApiError(message, status=500, code="internal_error", kind="server_error")


def shutting_down() -> ApiError:
    """The server ends before the request was served."""
    return ApiError("the server is shutting down; ask again", status=503, code="shutting_down", kind="server_error")


def shorten(value: Any) -> str:
    """A value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def wrong_content_type(given: str | None, wanted: str) -> ApiError:
    """A body whose header does not say `wanted`. It is not read as that all the same: a page of another site can make
    its visitor's browser send it to this server without that header, but not with "application/json"."""
    found = "the body has no Content-Type" if given is None else f"the body has the Content-Type {shorten(given)}"
    return ApiError(f"{found}; send it with Content-Type: {wanted}", code="invalid_content_type")


def from_validation(errors: list[Any]) -> ApiError:
    """The first of pydantic's errors, of `ValidationError.errors()`, as an error of the API."""
    first = errors[0]
    parts = [str(part) for part in first["loc"] if part not in INTERNAL_NAMES]
    # A content part's type stands before its field of the same name.
    place = ".".join(part for part, before in zip(parts, ["", *parts], strict=False) if part != before) or None
    if first["type"] == "extra_forbidden":
        return ApiError(f"{place} is not supported here; leave it out", place, code="unknown_parameter")
    if first["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    if place is None and first["type"] == "missing":
        return ApiError("the body is empty; send a JSON object", code="invalid_value")
    if place is None and first["type"] == "model_attributes_type":
        return ApiError(f"the body must be a JSON object, got {shorten(first['input'])}", code="invalid_value")
    where = f"{place}: " if place else ""
    got = "" if first["type"] == "missing" else f", got {shorten(first['input'])}"
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(f"{where}{message}{got}", place, code="invalid_value")


def validate(shape: type[Model], data: dict[str, Any]) -> Model:
    """Plain data as an instance of a pydantic model.

    Raises:
        ApiError: the data do not fit the model.
    """
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        raise from_validation(error.errors()) from error


__all__ = ["ApiError", "from_validation", "server_error", "shorten", "shutting_down", "validate", "wrong_content_type"]
