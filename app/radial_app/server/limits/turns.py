"""How much of the server one visitor may have at a time."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from radial_app.server.answers import problem

# Streams of events have limits of their own; the rest costs nothing, and tells strangers and machines that all is well.
_FREE = re.compile(r"/v1/((videos|stories)/[^/]+/)?events|/healthz|/login|/ui/[\w./-]+")
_BODY_SECONDS = 10.0  # for the whole body of a stranger
MOST_AT_ONCE = 16  # requests of a visitor that are being answered
MOST_WAITING = 200  # of a visitor's that wait for one of those to end


class Turns:
    """ASGI middleware: a visitor's requests beyond so many wait for their turn, which costs nobody anything; beyond
    many more, they are refused. Streams of events have limits of their own."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._visitors: dict[str, _Turn] = {}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer when it is the visitor's turn."""
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if scope["type"] != "http" or (reads and _FREE.fullmatch(scope["path"])):
            await self._app(scope, receive, send)
            return
        name = scope["state"]["visitor"].name or f"from {(scope.get('client') or ('',))[0]}"
        if not scope["state"]["visitor"].admin and not scope["state"]["visitor"].name:
            receive = _in_time(receive)
        turn = self._visitors.setdefault(name, _Turn())
        if turn.waiting >= MOST_AT_ONCE + MOST_WAITING:
            later = {"retry-after": "1"}
            answer = problem("too many requests at once: wait for some to be answered", 429, headers=later)
            await answer(scope, receive, send)
            return
        turn.waiting += 1
        try:
            async with turn.free:
                await self._app(scope, receive, send)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._visitors.pop(name, None)


def _in_time(receive: Any) -> Any:
    """The body of somebody who has not logged in yet comes within seconds, or counts as cut off."""
    ends: list[float] = []

    async def receive_in_time() -> Any:
        loop = asyncio.get_running_loop()
        ends[:] = ends or [loop.time() + _BODY_SECONDS]
        if ends[0] == float("inf"):  # all of it is here
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, ends[0] - loop.time()))
        except TimeoutError:
            return {"type": "http.disconnect"}
        if not message.get("more_body", False):
            ends[0] = float("inf")
        return message

    return receive_in_time


class _Turn:
    """One visitor's."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(MOST_AT_ONCE)
        self.waiting = 0
