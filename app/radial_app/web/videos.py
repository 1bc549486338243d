"""``/v1/videos``: create, list, watch, change, fetch and delete videos."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import FileResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from radial.errors import RadialError, RequestError
from radial_app.accounts import Visitor
from radial_app.jobs import FINISHED
from radial_app.web.desk import WAITING, Conflict, Desk, Missing, Place, store_in
from radial_app.web.views import Change, Deleted, Video, VideoList, VideoRequest, command_of, read_request

_TICK = 0.5  # seconds between two looks of a stream
_POLL = re.compile(r"/v1/videos/([0-9a-f]{8,40})")
_WELCOME_TICKS = 20  # looks between two questions whether who looks still may
_QUIET = 15.0  # after which it says that it still lives
Index = Annotated[int, Query(ge=0, le=999, description="Which of a job's videos.")]
Filter = Literal["all", "waiting", "finished", "done", "failed", "favourites"]
_STATES = {
    "all": WAITING + FINISHED, "waiting": WAITING, "finished": FINISHED, "done": ("done", "cancelled"),
    "failed": ("failed",), "favourites": FINISHED,
}  # fmt: skip


def make_router(place: Place) -> APIRouter:
    """The routes of a server that keeps its things in ``place``."""
    router = APIRouter(prefix="/v1", tags=["videos"])
    streams = Streams()

    def desk(request: Request) -> Desk:
        return Desk(place, request.state.visitor)

    @router.post(
        "/videos",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")
                    },
                },
            }
        },
    )
    async def create_video(request: Request) -> Video:
        """Put a video into the queue. JSON; or a form as OpenAI's clients send it, with an ``input_reference`` to start
        from."""
        fields, upload = await _read_fields(request)

        def add() -> Video:
            here = desk(request)
            if upload is not None:
                fields["image"] = here.inputs.take(upload.file).id
            (job,) = here.add([here.check(read_request(fields))])
            return here.view(job)

        return await run_in_threadpool(add)

    @router.post("/videos/check")
    def check_video(request: Request, fields: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """What a request would become, compute and take; nothing is queued."""
        here = desk(request)
        return here.plan_of(here.check(read_request(fields)))

    @router.get("/videos")
    def list_videos(
        request: Request,
        show: Filter = "all",
        search: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    ) -> VideoList:
        """A page of videos, the latest first."""
        here = desk(request)
        jobs = here.store.page(
            _STATES[show], owner=here.visitor.scope, favourites=show == "favourites",
            with_files=show == "done", text=search, limit=limit + 1,
            offset=offset,
        )  # fmt: skip
        data = [here.view(job) for job in jobs[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=len(jobs) > limit)

    @router.get("/videos/{id}")
    def get_video(request: Request, id: str) -> Video:
        """How a video stands. :class:`Polls` answers before this where there is such a video."""
        here = desk(request)
        return here.view(here.get(id))

    @router.patch("/videos/{id}")
    def change_video(request: Request, id: str, change: Change) -> Video:
        """Move a video that waits, edit its request, or mark a favourite."""
        here = desk(request)
        job = here.get(id)
        if change.request:
            job = here.edit(job.id, change.request)
        if (change.place is not None or change.step is not None) and job.state != "queued":
            raise Conflict(f"video {id} is {job.state}: only those that wait have a place to move from")
        if change.place is not None:
            here.store.move(job.id, change.place, here.visitor.scope)
        if change.step is not None:
            here.store.step(job.id, -1 if change.step == "up" else 1, here.visitor.scope)
        if change.favourite is not None:
            here.store.favour(job.id, change.favourite)
        return here.view(here.get(job.id))

    @router.delete("/videos/{id}")
    def delete_video(request: Request, id: str) -> Deleted:
        """Forget a video; its file goes into the trash beside it."""
        desk(request).remove(id)
        return Deleted(id=id)

    @router.get("/videos/{id}/content")
    def get_content(
        request: Request, id: str, index: Index = 0,
        variant: Literal["video", "playable", "thumbnail", "preview"] = "video", download: bool = False,
    ) -> FileResponse:  # fmt: skip
        """The video's file; a copy that browsers play; a small picture; or a look at what is being made."""
        here = desk(request)
        if variant == "preview":
            path = here.store.preview_path(here.get(id).id)
            if not path.is_file():
                raise Missing(f"video {id} shows nothing yet")
            return FileResponse(path, headers={"cache-control": "no-store"})
        if variant == "thumbnail":
            return FileResponse(here.thumbnail(id, index), headers={"cache-control": "private, max-age=600"})
        path = here.file(id, index, playable=variant == "playable")
        how = "attachment" if download else "inline"
        return FileResponse(path, filename=path.name, content_disposition_type=how,
                            headers={"cache-control": "private, no-cache"})  # fmt: skip

    @router.get("/videos/{id}/log")
    def get_log(request: Request, id: str, after: Annotated[int, Query(ge=0, le=2**53)] = 0) -> list[dict[str, Any]]:
        """What happened to a video so far."""
        here = desk(request)
        names = ("number", "time", "kind", "text")
        rows = here.store.events(here.get(id).id, after)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @router.get("/videos/{id}/receipt")
    def get_receipt(request: Request, id: str, index: Index = 0) -> dict[str, Any]:
        """How a video was made."""
        here = desk(request)
        receipts = here.store.receipts(here.get(id).id)
        if index >= len(receipts):
            raise Missing(f"video {id} has no receipt {index} yet")
        return receipts[index]

    @router.get("/videos/{id}/command")
    def get_command(request: Request, id: str) -> dict[str, str]:
        """The command line that makes a video again."""
        return {"command": command_of(desk(request).get(id))}

    @router.post("/videos/{id}/duplicate")
    def duplicate_video(request: Request, id: str, changes: Annotated[dict[str, Any], Body()]) -> Video:
        """The same video again, with other values of its request."""
        here = desk(request)
        return here.view(here.duplicate(id, changes))

    @router.post("/videos/{id}/{action}")
    def act_on_video(
        request: Request, id: str, action: Literal["pause", "resume", "cancel", "retry"], keep: bool = True
    ) -> Video:
        """Pause, go on, give up (``keep`` decodes what there is) or try again."""
        here = desk(request)
        return here.view(here.act(id, action, keep))

    @router.get("/videos/{id}/events", response_class=StreamingResponse)
    async def stream_video(request: Request, id: str) -> StreamingResponse:
        """The video as it changes, as server-sent events; the stream ends when it is finished."""
        desk(request).get(id)

        def look() -> tuple[str, str, bool]:
            here = desk(request)
            try:
                job = here.get(id)
            except Missing:
                return "deleted", "{}", True
            return "video", here.view(job).model_dump_json(), job.state in FINISHED

        return streams.start(request, look)

    @router.get("/queue")
    def get_queue(request: Request) -> dict[str, Any]:
        """What runs and waits, and how many videos there are of each kind."""
        return _board(desk(request))

    @router.get("/events", response_class=StreamingResponse)
    async def stream_queue(request: Request) -> StreamingResponse:
        """The queue as it changes, as server-sent events."""

        ticks, workers, seen, board = itertools.count(), 0, None, ""

        def look() -> tuple[str, str, bool]:
            nonlocal workers, seen, board
            store = store_in(place.data)
            if next(ticks) % 4 == 0:  # workers come and go without a word in the database
                workers = len(store.locks.living())
            if (now := (store.version(), workers)) != seen:
                seen, board = now, json.dumps(_board(desk(request)))
            return "queue", board, False

        return streams.start(request, look)

    return router


class Streams:
    """Server-sent events, of which each visitor may have so many at a time."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    def start(self, request: Request, look: Callable[[], tuple[str, str, bool]]) -> StreamingResponse:
        """What ``look`` finds (the event, its data, whether it is the last), each time it differs.

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
            try:
                async for part in self._events(request, look):
                    yield part
            finally:
                self._open[name] -= 1

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def _events(self, request: Request, look: Callable[[], tuple[str, str, bool]]) -> AsyncIterator[str]:
        told, quiet, ticks = "", 0.0, itertools.count(1)
        while not await request.is_disconnected():
            event, text, last = look()
            quiet += _TICK
            if text != told:
                yield f"event: {event}\ndata: {text}\n\n"
                told, quiet = text, 0.0
            elif quiet >= _QUIET:
                yield ": still here\n\n"
                quiet = 0.0
            if last:
                return
            await asyncio.sleep(_TICK)
            if next(ticks) % _WELCOME_TICKS == 0 and not await run_in_threadpool(request.state.still_welcome):
                return


class Polls:
    """ASGI middleware that answers how a video stands: many ask for the same one, again and again, and what was told
    last stays right until somebody changes a job."""

    def __init__(self, app: Any, place: Place, size: int = 512) -> None:
        self._app, self._place, self._size = app, place, size
        self._told: OrderedDict[tuple[Visitor, str], tuple[Any, bytes]] = OrderedDict()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a poll, or pass on."""
        if scope["type"] == "http" and scope["method"] == "GET" and (match := _POLL.fullmatch(scope["path"])):
            with contextlib.suppress(RadialError):  # whatever is amiss, the route says it
                body = self._find(scope["state"]["visitor"], match[1])
                headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self._app(scope, receive, send)

    def _find(self, visitor: Visitor, id: str) -> bytes:
        store = store_in(self._place.data)
        key, version = (visitor, id), (store, store.version())  # versions of one connection can be compared
        known = self._told.get(key)
        if known is None or known[0] != version:
            here = Desk(self._place, visitor)
            self._told[key] = known = (version, here.view(here.get(id)).model_dump_json().encode())
            if len(self._told) > self._size:
                self._told.popitem(last=False)
        return known[1]


def _board(desk: Desk) -> dict[str, Any]:
    """The queue of one visitor."""
    shown = 200
    waiting = desk.store.find(WAITING, limit=shown, owner=desk.visitor.scope)
    counts = desk.store.counts(desk.visitor.scope)
    return {
        "counts": counts, "workers": len(desk.store.locks.living()),
        "waiting": [desk.view(job).model_dump(mode="json") for job in waiting],
        "more": max(0, sum(counts.get(state, 0) for state in WAITING) - len(waiting)),
    }  # fmt: skip


async def _read_fields(request: Request) -> tuple[dict[str, Any], UploadFile | None]:
    """The fields of a JSON body or of a form, and the file that came with it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        form = await request.form(max_files=1, max_fields=60)
        upload = form.get("input_reference")
        fields: dict[str, Any] = {name: _value(value) for name, value in form.items() if isinstance(value, str)}
        return fields, upload if isinstance(upload, UploadFile) else None
    if kind != "application/json":
        raise RequestError("send application/json or a form")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is no JSON") from error
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body, None


def _value(text: str) -> Any:
    """A form's field: structured ones are JSON."""
    if text[:1] in "[{":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
