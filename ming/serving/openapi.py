"""What the OpenAPI document (/openapi.json) says about the answers of the routes, and about forms."""

from typing import Any

from pydantic import BaseModel

from ming.serving.remarks import HEADER

Responses = dict[int | str, dict[str, Any]]

DESCRIPTIONS = {
    400: "The request is wrong; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "No such model.",
    408: "The body did not come in time.",
    413: "The body, or a file at an address, is too large.",
    429: "Too many requests are waiting; try again after `Retry-After` seconds.",
    500: "The server failed at this request; its log says why.",
    503: "The server does not work, or is shutting down.",
}
OF_REQUESTS = tuple(DESCRIPTIONS)  # what an answer to a POST can be, beside 200
BINARY = {"type": "string", "format": "binary"}


class Error(BaseModel):
    """An error in OpenAI's shape; `param` is the field that is wrong, `code` a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not 200."""

    error: Error


def responses(*content_types: str, errors: tuple[int, ...] = OF_REQUESTS) -> Responses:
    """The `responses` of a route.

    Args:
        content_types: of the answer 200, such as "application/json".
        errors: status codes, keys of `DESCRIPTIONS`.
    """
    content = {name: {"schema": _schema(name)} for name in content_types}
    warnings = {"description": "Warnings about the media: a JSON list of texts.", "schema": {"type": "string"}}
    headers = {HEADER: warnings}
    documented: Responses = {200: {"description": "The answer.", "content": content, "headers": headers}}
    for status in errors:
        documented[status] = {"model": ErrorBody, "description": DESCRIPTIONS[status]}
    if 429 in errors:
        documented[429]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    # Without this entry FastAPI documents 422, which `server.py` answers as 400.
    documented["default"] = {"model": ErrorBody, "description": "Any other error."}
    return documented


def _schema(content_type: str) -> dict[str, Any]:
    if content_type == "application/json":
        return {"type": "object"}
    return BINARY if content_type.startswith("audio/") else {"type": "string"}


def form(shape: type[BaseModel], file: str, several: bool = False) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a form.

    Args:
        shape: the fields beside the files.
        file: the name that the files come under; `several`: whether more than one may come.
    """
    # An empty field counts as one that is left out.
    schema: dict[str, Any] = {**shape.model_json_schema(), "additionalProperties": {"const": ""}}
    schema["properties"] = {name: _without_null(field) for name, field in schema["properties"].items()}
    schema["properties"][file] = {"type": "array", "items": BINARY, "minItems": 1} if several else BINARY
    schema["required"] = [*schema.get("required", []), file]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field of a form, whose values are texts: there is no null."""
    parts = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    return {"anyOf": parts} if len(parts) > 1 else next(iter(parts), schema)


__all__ = ["OF_REQUESTS", "form", "responses"]
