"""How much of the server one visitor may have at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from radial_app.server.answers import refuse

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
        if scope["type"] != "http" or scope["path"].endswith("/events"):
            await self._app(scope, receive, send)
            return
        name = scope["state"]["visitor"].name
        turn = self._visitors.setdefault(name, _Turn())
        if turn.waiting >= MOST_AT_ONCE + MOST_WAITING:
            await refuse(429, "too many requests at once: wait for some to be answered", send, [(b"retry-after", b"1")])
            return
        turn.waiting += 1
        try:
            async with turn.free:
                await self._app(scope, receive, send)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._visitors.pop(name, None)


class _Turn:
    """One visitor's."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(MOST_AT_ONCE)
        self.waiting = 0
