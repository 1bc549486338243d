"""Errors as the interface tells them, in the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse

from radial.errors import RequestError, explain_all
from radial.request import GenerationRequest
from radial.stories.fields import OF_STORIES

_CODES = {401: "invalid_api_key", 403: "forbidden", 404: "not_found", 409: "conflict", 413: "too_large",
          422: "invalid_value", 429: "rate_limit_exceeded", 503: "busy", 507: "insufficient_storage"}  # fmt: skip
_FIELDS = {*GenerationRequest.model_fields, "size", "seconds", "preset", "file", "lines", "keep", *OF_STORIES}


class InvalidFields(RequestError):
    """Fields of a body break their rules: pydantic's complaints, in a user's words."""

    def __init__(self, problems: Sequence[Any]) -> None:
        super().__init__(explain_all(problems, 10))
        self.param = ".".join(map(str, problems[0]["loc"])) if problems else None


def field_of(error: Exception) -> str | None:
    """The field of a request that an error is about, where it names one first."""
    if isinstance(error, InvalidFields):
        return error.param
    first = str(error).partition(" ")[0].rstrip(":")
    return first if first in _FIELDS else None


def problem(message: str, status: int, param: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as an answer."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": _CODES.get(status)}
    return JSONResponse({"error": error}, status, headers)
