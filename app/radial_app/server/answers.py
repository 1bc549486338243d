"""Errors as the interface tells them, in the form that OpenAI's clients read."""

from __future__ import annotations

from starlette.responses import JSONResponse


def problem(message: str, status: int, param: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as an answer."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": None}
    return JSONResponse({"error": error}, status, headers)
