"""What of Gradio is open: the calls of its clients, which carry text and numbers, and no files.

Gradio copies whatever looks like a file in a call, of any path or address, into a folder that it serves. Nothing that
looks like one gets in or out here, and the routes that these calls do not need are closed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from radial_app.server.answers import problem
from radial_app.server.limits.bodies import again, read_body

log = logging.getLogger("radial.web")

API = "/gradio"
_READ = {f"{API}{path}" for path in ("/config", "/gradio_api/info", "/gradio_api/app_id", "/gradio_api/queue/data")}
_CALL = re.compile(rf"{API}/gradio_api/(?:run/\w{{1,40}}|queue/join)")
_SESSION = re.compile(r"[\w-]{1,40}")
_MAX_TEXT = 100_000  # bytes
_STALE = "there is no such call, or it has other values: see /gradio/gradio_api/info"


class GradioDoor:
    """ASGI middleware around Gradio's routes.

    Args:
        events: by their numbers: how many values each carries.
    """

    def __init__(self, app: Any, events: Mapping[int, int]) -> None:
        self._app, self._events = app, events

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass on what is ours and what clients call, refuse the rest."""
        path = scope.get("path", "")
        if scope["type"] == "lifespan" or not (path == API or path.startswith(f"{API}/")):
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and _CALL.fullmatch(path):
            await self._event(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and path in _READ:
            await self._app(scope, receive, send)
        else:
            await problem("there is no such page", 404)(scope, receive, send)

    async def _event(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = await read_body(receive)
        try:
            body = _cleaned(body, self._events)
        except ValueError as error:
            await JSONResponse({"error": str(error)}, 422)(scope, receive, send)  # as Gradio's clients read it
            return
        # The body is another's now.
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}
        failed: bytes | None = None

        async def send_checked(message: dict[str, Any]) -> None:
            """Gradio answers 500 for whatever went wrong, with words where the call has said them."""
            nonlocal failed
            if message["type"] == "http.response.start" and message["status"] >= 500:
                failed = b""
            elif failed is None:
                await send(message)
            else:
                failed += message.get("body", b"")

        await self._app(scope, again(body, receive), send_checked)
        if failed is not None:
            told = json.loads(failed or b"{}").get("error")
            if told is None:
                log.warning("a call failed: %s", body[:1000])
            await JSONResponse({"error": told or _STALE}, 422)(scope, receive, send)


def _cleaned(body: bytes, events: Mapping[int, int]) -> bytes:
    """A call, with nothing in it but what our calls have.

    Raises:
        ValueError: it is none, or carries more than text, numbers and choices.
    """
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is no JSON") from None
    values, number = (event.get("data"), event.get("fn_index")) if isinstance(event, dict) else (None, None)
    if type(number) is not int or not isinstance(values, list) or events.get(number) != len(values):
        raise ValueError(_STALE)
    for value in values:
        if isinstance(value, (dict, list)) or (isinstance(value, str) and not _is_text(value)):
            raise ValueError("a call carries text and numbers alone")
    session = event.get("session_hash")
    named = isinstance(session, str) and _SESSION.fullmatch(session)
    return json.dumps({"data": values, "fn_index": number} | ({"session_hash": session} if named else {})).encode()


def _is_text(value: str) -> bool:
    """Whether a text is not too long, and can be written."""
    try:
        return len(value.encode()) <= _MAX_TEXT
    except UnicodeEncodeError:  # half of a pair
        return False
