"""``/v1/stories``: create, watch, stop, go on with and delete stories, whose films play while they grow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from radial_app.jobs.job import FINISHED, UNFINISHED
from radial_app.server.limits.streams import Look, Streams
from radial_app.server.service import Missing, ServerPaths, Service
from radial_app.server.stories.growing import send_growing
from radial_app.server.stories.service import Stories
from radial_app.server.stories.views import More, Story, StoryBody, StoryList
from radial_app.server.views import Deleted

# What a body of fields is, for machines: it is read as it comes, and judged by its own rules.
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": StoryBody.model_json_schema(ref_template="#/components/schemas/{model}")}
        },
    }
}


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1/stories", tags=["stories"])
    streams = Streams(paths)

    def stories(request: Request) -> Stories:
        return Stories(Service(paths, request.state.visitor))

    @router.post("", openapi_extra=_BODY)
    def create_story(request: Request, fields: Annotated[dict[str, Any], Body()]) -> Story:
        """Put a story into the queue: many prompts, one film."""
        return stories(request).create(fields)

    @router.post("/check", openapi_extra=_BODY)
    def check_story(request: Request, fields: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """What a story would become and take; nothing is queued."""
        return stories(request).check(fields)

    @router.get("")
    def list_stories(
        request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=40, description="The id of the page's last story.")] = None,
    ) -> StoryList:  # fmt: skip
        """A page of stories, the latest first."""
        service = Service(paths, request.state.visitor)
        here = Stories(service)
        jobs = service.store.page(
            UNFINISHED + FINISHED, owner=service.visitor.scope, stories=True, limit=limit + 1,
            after=None if after is None else here.get(after).id,
        )  # fmt: skip
        data = [here.view(job) for job in jobs[:limit] if not job.problem]
        return StoryList(data=data, has_more=len(jobs) > limit)

    @router.get("/{id}")
    def get_story(request: Request, id: str) -> Story:
        """How a story stands: its segments with their times, and how much of its film plays."""
        here = stories(request)
        return here.view(here.get(id))

    @router.delete("/{id}")
    def delete_story(request: Request, id: str) -> Deleted:
        """Forget a story; its film goes into the trash, with what it goes on from."""
        service = Service(paths, request.state.visitor)
        service.remove(Stories(service).get(id).id)
        return Deleted(id=id)

    @router.get("/{id}/content")
    def get_film(
        request: Request, id: str, download: bool = False,
        upto: Annotated[
            int | None, Query(ge=1, le=2**53, description="So many bytes of a growing film, which stay the same.")
        ] = None,
    ) -> Response:  # fmt: skip
        """The film: its file, or what of it plays so far; ranges are answered, also while it grows."""
        path, size = stories(request).film(id)
        if size is None:
            how = "attachment" if download else "inline"
            return FileResponse(path, filename=path.name, content_disposition_type=how,
                                headers={"cache-control": "private, no-cache"})  # fmt: skip
        return send_growing(path, size if upto is None else min(upto, size), request.headers.get("range"))

    @router.get("/{id}/segments/{number}/thumbnail")
    def get_segment_thumbnail(request: Request, id: str, number: Annotated[int, Path(ge=1, le=4096)]) -> FileResponse:
        """A small picture of a segment that is made; segments count from 1."""
        return FileResponse(
            stories(request).thumbnail(id, number), headers={"cache-control": "private, max-age=600"}
        )  # fmt: skip

    @router.post("/{id}/continue")
    def continue_story(request: Request, id: str, more: More) -> Story:
        """Go on with a film that has ended: a new story of its first segments, as they were made, and more lines."""
        return stories(request).go_on(id, more)

    @router.post("/{id}/{action}")
    def act_on_story(
        request: Request, id: str, action: Literal["pause", "resume", "cancel", "retry"], keep: bool = True
    ) -> Story:
        """Pause; go on; stop, and ``keep`` what there is; or try again, from what there is."""
        service = Service(paths, request.state.visitor)
        here = Stories(service)
        return here.view(service.act(here.get(id).id, action, keep))

    @router.get("/{id}/events", response_class=StreamingResponse)
    async def stream_story(request: Request, id: str) -> StreamingResponse:
        """The story as it changes, as server-sent events; the stream ends when it is finished."""
        visitor = request.state.visitor

        def look() -> Look:
            here = Stories(Service(paths, visitor))
            try:
                job = here.get(id)
            except Missing:
                return Look("deleted", "{}", last=True)
            return Look("story", here.view(job).model_dump_json(), last=job.state in FINISHED)

        await run_in_threadpool(lambda: Stories(Service(paths, visitor)).get(id))
        return streams.start(request, f"story {id}", look)

    return router
