"""``/v1/videos``: create, list, watch, change, fetch and delete videos."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from radial.errors import RequestError
from radial_app.jobs.command import command_of
from radial_app.jobs.job import FINISHED, UNFINISHED
from radial_app.server.finishing.bounds import FinishRequest
from radial_app.server.finishing.orders import finish_video
from radial_app.server.limits.streams import Look, Streams
from radial_app.server.service import Conflict, Missing, ServerPaths, Service
from radial_app.server.views import (
    Change,
    Deleted,
    ListedVideos,
    ListRequest,
    Video,
    VideoList,
    VideoRequest,
    output_of,
    read_request,
)

Index = Annotated[int, Query(ge=0, le=999, description="Which of a job's videos.")]
Filter = Literal["all", "waiting", "finished", "done", "failed", "favourites"]
_STATES = {
    "all": UNFINISHED + FINISHED, "waiting": UNFINISHED, "finished": FINISHED, "done": ("done", "cancelled"),
    "failed": ("failed",), "favourites": FINISHED,
}  # fmt: skip

# What a body of fields is, for machines: it is read as it comes, and judged by its own rules.
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")}
        },
    }
}


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1", tags=["videos"])
    streams = Streams(paths)

    def service(request: Request) -> Service:
        return Service(paths, request.state.visitor)

    @router.post("/videos", openapi_extra=_BODY)
    async def create_video(request: Request) -> Video:
        """Put a video into the queue. JSON; or a form as OpenAI's clients send it, with an ``input_reference`` to start
        from."""
        fields, upload = await _read_fields(request)

        def add() -> Video:
            here = service(request)
            if upload is not None:
                fields["image"] = here.inputs.take(upload.file).id
            written, output, finish = read_request(fields)
            (job,) = here.add([here.check(written)], output, finish)
            return here.view(job)

        return await run_in_threadpool(add)

    @router.post("/videos/check", openapi_extra=_BODY)
    def check_video(request: Request, fields: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """What a request would become, compute and take; nothing is queued."""
        here = service(request)
        return here.plan_of(here.check(read_request(fields)[0]))

    @router.post("/lists")
    def queue_list(request: Request, wanted: ListRequest) -> ListedVideos:
        """Put the videos of a list into the queue, all or none; or say what it would make."""
        here, warnings = service(request), list[str]()
        jobs = here.read_list(wanted.text, wanted.kind, wanted.defaults, output_of(wanted.file), warnings)
        queued = [] if wanted.dry_run else here.add_jobs(jobs)
        return ListedVideos(data=here.tell_listed(jobs), ids=[job.id for job in queued], warnings=warnings)

    @router.get("/videos")
    def list_videos(
        request: Request,
        show: Filter = "all",
        search: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
        after: Annotated[str | None, Query(max_length=40, description="The id of the page's last video.")] = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """A page of videos, the latest first; ``after`` goes on where a page ended, as OpenAI's clients do."""
        here = service(request)
        jobs = here.store.page(
            _STATES[show], owner=here.visitor.scope, favourites=show == "favourites", with_files=show == "done",
            text=search, limit=limit + 1, offset=offset, after=None if after is None else here.get(after).id,
            oldest_first=order == "asc",
        )  # fmt: skip
        data = [here.view(job) for job in jobs[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=len(jobs) > limit)

    @router.get("/videos/{id}")
    def get_video(request: Request, id: str) -> Video:
        """How a video stands."""  # Polls answers before this, where there is such a video
        here = service(request)
        return here.view(here.get(id))

    @router.patch("/videos/{id}")
    def change_video(request: Request, id: str, change: Change) -> Video:
        """Move a video that waits, edit its request, or mark a favourite."""
        here = service(request)
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
        service(request).remove(id)
        return Deleted(id=id)

    @router.get("/videos/{id}/content")
    def get_content(
        request: Request, id: str, index: Index = 0,
        variant: Literal["video", "playable", "thumbnail", "preview"] = "video", download: bool = False,
    ) -> Response:  # fmt: skip
        """The video's file; a copy that browsers play; a small picture; or a look at what is being made."""
        here = service(request)
        if variant == "preview":
            try:  # read at once: another look may come into its place, longer than the length that was told
                look = here.store.preview_path(here.get(id).id).read_bytes()
            except FileNotFoundError as error:
                raise Missing(f"video {id} shows nothing yet") from error
            return Response(look, media_type="image/webp", headers={"cache-control": "no-store"})
        if variant == "thumbnail":
            return FileResponse(here.thumbnail(id, index), headers={"cache-control": "private, max-age=600"})
        path = here.file(id, index, playable=variant == "playable")
        how = "attachment" if download else "inline"
        return FileResponse(path, filename=path.name, content_disposition_type=how,
                            headers={"cache-control": "private, no-cache"})  # fmt: skip

    @router.get("/videos/{id}/log")
    def get_log(request: Request, id: str, after: Annotated[int, Query(ge=0, le=2**53)] = 0) -> list[dict[str, Any]]:
        """What happened to a video so far."""
        here = service(request)
        names = ("number", "time", "kind", "text")
        rows = here.store.events(here.get(id).id, after)
        return [dict(zip(names, (*row[:3], here.words(row[3])), strict=True)) for row in rows]

    @router.get("/videos/{id}/receipt")
    def get_receipt(request: Request, id: str, index: Index = 0) -> dict[str, Any]:
        """How a video was made."""
        here = service(request)
        receipts = here.store.receipts(here.get(id).id)
        if index >= len(receipts):
            raise Missing(f"video {id} has no receipt {index} yet")
        shown: dict[str, Any] = json.loads(here.words(json.dumps(receipts[index])))
        return shown

    @router.get("/videos/{id}/command")
    def get_command(request: Request, id: str) -> dict[str, str]:
        """The command line that makes a video again."""
        here = service(request)
        return {"command": here.words(command_of(here.get(id)))}

    @router.post("/videos/{id}/duplicate")
    def duplicate_video(request: Request, id: str, changes: Annotated[dict[str, Any], Body()]) -> Video:
        """The same video again, with other values of its request."""
        here = service(request)
        return here.view(here.duplicate(id, changes))

    @router.post("/videos/{id}/finish")
    def queue_finish(request: Request, id: str, wanted: FinishRequest) -> Video:
        """Put a job into the queue that finishes a video, into a file of its own: the video stays as it is."""
        here = service(request)
        return here.view(finish_video(here, id, wanted))

    @router.post("/videos/{id}/{action}")
    def act_on_video(
        request: Request, id: str, action: Literal["pause", "resume", "cancel", "retry"], keep: bool = True
    ) -> Video:
        """Pause, go on, give up (``keep`` decodes what there is) or try again."""
        here = service(request)
        return here.view(here.act(id, action, keep))

    @router.get("/videos/{id}/events", response_class=StreamingResponse)
    async def stream_video(request: Request, id: str) -> StreamingResponse:
        """The video as it changes, as server-sent events; the stream ends when it is finished."""
        visitor = request.state.visitor

        def look() -> Look:
            here = Service(paths, visitor)
            try:
                job = here.get(id)
            except Missing:
                return Look("deleted", "{}", last=True)
            return Look("video", here.view(job).model_dump_json(), last=job.state in FINISHED)

        await run_in_threadpool(lambda: Service(paths, visitor).get(id))
        return streams.start(request, id, look)

    @router.get("/queue")
    def get_queue(request: Request) -> dict[str, Any]:
        """What runs and waits, and how many videos there are of each kind."""
        return _board(service(request))

    @router.get("/events", response_class=StreamingResponse)
    async def stream_queue(request: Request) -> StreamingResponse:
        """The queue as it changes, as server-sent events."""
        visitor = request.state.visitor
        return streams.start(
            request, "queue", lambda: Look("queue", json.dumps(_board(Service(paths, visitor))), last=False)
        )

    return router


def _board(service: Service) -> dict[str, Any]:
    """The queue of one visitor."""
    shown = 200
    waiting = service.store.find(UNFINISHED, limit=shown, owner=service.visitor.scope)
    counts = service.store.counts(service.visitor.scope)
    times = service.seconds_of(waiting)
    told = [service.view(job).model_dump(mode="json") | {"render_seconds": time}
            for job, time in zip(waiting, times, strict=True)]  # fmt: skip
    return {
        "counts": counts, "workers": len(service.store.locks.living()), "waiting": told,
        "more": max(0, sum(counts.get(state, 0) for state in UNFINISHED) - len(waiting)),
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
