"""What of Gradio is open: the page and the events of its form, which carry text, numbers and choices, and no files.

Gradio copies whatever looks like a file in an event, of any path or address, into a folder that it serves. Nothing that
looks like one gets in or out here, and the routes that the page does not use are closed.
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

_OURS = re.compile(r"/(v1|ui|studio|mcp)/.*|/(healthz|metrics|login|mcp|docs|openapi\.json)")
_OURS_TO_POST = ("/logout",)  # Gradio has one to read
_READ = re.compile(r"/|/theme\.css|/favicon\.ico|/(assets|static)/[\w./@+-]+|/gradio_api/app_id")
_EVENT = "/gradio_api/run/predict"
_MAX_TEXT = 100_000  # bytes
_STALE = "this page is of another version of radial: load it again"


class GradioDoor:
    """ASGI middleware around Gradio's routes.

    Args:
        events: of the page, by their numbers: how many values each carries.
    """

    def __init__(self, app: Any, events: Mapping[int, int]) -> None:
        self._app, self._events = app, events

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass on what the page uses, refuse the rest."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == _EVENT:
            await self._event(scope, receive, send)
        elif scope["type"] == "lifespan" or _is_open(scope):
            await self._app(scope, receive, send)
        else:
            await problem("there is no such page", 404)(scope, receive, send)

    async def _event(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = await read_body(receive)
        try:
            body = _cleaned(body, self._events)
        except ValueError as error:
            await JSONResponse({"error": str(error)}, 422)(scope, receive, send)  # as Gradio's page reads it
            return
        # The body is another's now.
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}
        failed = False

        async def send_checked(message: dict[str, Any]) -> None:
            """Gradio answers 500, with the error's text, for events that it does not have or that have other values."""
            nonlocal failed
            if message["type"] == "http.response.start" and message["status"] >= 500:
                failed = True
                return
            if not failed:
                await send(message)

        await self._app(scope, again(body, receive), send_checked)
        if failed:
            log.warning("an event of the page failed: %s", body[:1000])
            await JSONResponse({"error": _STALE}, 422)(scope, receive, send)


def _is_open(scope: dict[str, Any]) -> bool:
    """Whether a request is for a route of ours, or for one of Gradio's that the page reads."""
    if scope["type"] != "http":
        return False
    path, reads = scope["path"], scope["method"] in ("GET", "HEAD")
    if _OURS.fullmatch(path) or (not reads and path in _OURS_TO_POST):
        return True
    return reads and _READ.fullmatch(path) is not None and ".." not in path


def _cleaned(body: bytes, events: Mapping[int, int]) -> bytes:
    """An event of our page, with nothing in it but what our page's events have.

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
            raise ValueError("an event carries text, numbers and choices alone")
    trigger = event.get("trigger_id")
    # Without a session: Gradio would keep some 200 kB for each one that is named.
    return json.dumps(
        {"data": values, "fn_index": number, "trigger_id": trigger if type(trigger) is int else None}
    ).encode()


def _is_text(value: str) -> bool:
    """Whether a text is not too long, and can be written."""
    try:
        return len(value.encode()) <= _MAX_TEXT
    except UnicodeEncodeError:  # half of a pair
        return False
