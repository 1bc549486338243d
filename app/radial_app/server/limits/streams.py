"""What changes, told to those who watch: streams of events, and answers to polls.

The database is read in threads of their own, never on the event loop, and once for all who watch the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from radial.errors import RadialError
from radial_app.server.accounts import Visitor
from radial_app.server.service import ServerPaths, Service, store_in

log = logging.getLogger("radial.server")

_TICK = 0.5  # seconds between two looks at the database
_WORKER_TICKS = 4  # looks between two at the workers, who come and go without a word in the database
_WELCOME_SECONDS = 10.0  # between two questions whether who watches still may
_QUIET = 15.0  # after which a stream says that it still lives
_POLL = re.compile(r"/v1/videos/([0-9a-f]{8,40})")


class Look(NamedTuple):
    """What is told: the event, its data, whether it is the last."""

    event: str
    text: str
    last: bool


@dataclass(eq=False)
class _Watched:
    """Something that several streams may watch."""

    look: Callable[[], Look]
    seen: Look | None = None
    streams: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Streams:
    """Server-sent events, of which each visitor may have so many at a time."""

    def __init__(self, paths: ServerPaths, most: int = 32) -> None:
        self._paths, self._most = paths, most
        self._open: Counter[str] = Counter()
        self._watched: dict[tuple[Visitor, str], _Watched] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="streams")
        self._ticker: asyncio.Task[None] | None = None

    def start(self, request: Request, what: str, look: Callable[[], Look]) -> StreamingResponse:
        """What ``look`` finds, each time it differs; those of a visitor who watch the same share what is found.

        It ends when the visitor goes, logs out or loses the key.

        Raises:
            HTTPException: the visitor has enough of them open.
        """
        name = request.state.visitor.name
        if self._open[name] >= self._most:
            raise HTTPException(429, f"{self._most} streams of events are open already: close some")

        async def events() -> AsyncIterator[str]:
            if self._open[name] >= self._most:  # many came at once
                return
            self._open[name] += 1
            key = (request.state.visitor, what)
            watched = self._watched.setdefault(key, _Watched(look))
            watched.streams += 1
            try:
                async for part in self._events(request, watched):
                    yield part
            finally:
                self._open[name] -= 1
                watched.streams -= 1
                if not watched.streams:
                    self._watched.pop(key, None)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def _events(self, request: Request, watched: _Watched) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        if self._ticker is None or self._ticker.done():
            self._ticker = loop.create_task(self._tick())
        if watched.seen is None:
            await loop.run_in_executor(self._reader, _look_again, [watched])
        told: Look | None = None
        quiet = welcome = loop.time()
        while not await request.is_disconnected():
            seen, now = watched.seen, loop.time()
            if seen is not None and seen != told:
                yield f"event: {seen.event}\ndata: {seen.text}\n\n"
                told, quiet = seen, now
            elif now - quiet >= _QUIET:
                yield ": still here\n\n"
                quiet = now
            if (told is not None and told.last) or request.app.state.is_ending():
                return
            if now - welcome >= _WELCOME_SECONDS:
                if not await request.state.still_welcome():
                    return
                welcome = now
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(watched.changed.wait(), 2 * _TICK)

    async def _tick(self) -> None:
        """Look at what is watched when the database has changed, as long as anybody watches."""
        loop, ticks, version = asyncio.get_running_loop(), 0, None
        while self._watched:
            ticks += 1
            watched = list(self._watched.values())
            try:
                now = await loop.run_in_executor(self._reader, lambda: store_in(self._paths.data).version())
                if now != version or ticks % _WORKER_TICKS == 0:
                    version = now
                    for one in await loop.run_in_executor(self._reader, _look_again, watched):
                        one.changed.set()
                        one.changed.clear()
            except RadialError:  # locked, or broken: what was told last stays until it is not
                pass
            except Exception:  # whatever it is, the next look may go well
                log.exception("a look at the queue")
            await asyncio.sleep(_TICK)


def _look_again(watched: list[_Watched]) -> list[_Watched]:
    """Those of them that look otherwise now."""
    changed = []
    for one in watched:
        try:
            seen = one.look()
        except RadialError:
            continue
        except Exception:
            log.exception("a look at a video")
            continue
        if seen != one.seen:
            one.seen = seen
            changed.append(one)
    return changed


class Polls:
    """ASGI middleware that answers how a video stands: many ask for the same one, again and again, and what was told
    last stays right until somebody changes a job."""

    def __init__(self, app: Any, paths: ServerPaths, size: int = 512) -> None:
        self._app, self._paths, self._size = app, paths, size
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="polls")
        self._told: OrderedDict[tuple[Visitor, str], tuple[Any, bytes]] = OrderedDict()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a poll, or pass on."""
        if scope["type"] == "http" and scope["method"] == "GET" and (match := _POLL.fullmatch(scope["path"])):
            with contextlib.suppress(RadialError):  # whatever is amiss, the route says it
                find = asyncio.get_running_loop().run_in_executor
                body = await find(self._reader, self._find, scope["state"]["visitor"], match[1])
                await Response(body, media_type="application/json")(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _find(self, visitor: Visitor, id: str) -> bytes:
        store = store_in(self._paths.data)
        key, version = (visitor, id), (store, store.version())  # versions of one connection can be compared
        known = self._told.get(key)
        if known is None or known[0] != version:
            here = Service(self._paths, visitor)
            self._told[key] = known = (version, here.view(here.get(id)).model_dump_json().encode())
            if len(self._told) > self._size:
                self._told.popitem(last=False)
        return known[1]
