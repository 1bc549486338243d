"""Errors as the interface tells them, in the form that OpenAI's clients read."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


def problem(message: str, status: int, param: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as an answer."""
    return JSONResponse({"error": _error(message, status, param)}, status, headers)


async def refuse(status: int, message: str, send: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """Answer with an error, below any application."""
    body = json.dumps({"error": _error(message, status)}).encode()
    told = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})


def _error(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": None}
