"""Tools for agents, over MCP: the same service as the REST interface's, for whoever's key or session it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from mcp.server.fastmcp import Context, FastMCP
from mcp.server.fastmcp.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from radial.errors import RadialError
from radial.version import __version__
from radial_app.jobs.job import FINISHED, UNFINISHED, Job
from radial_app.server.answers import problem
from radial_app.server.limits.bodies import again, read_body
from radial_app.server.service import ServerPaths, Service
from radial_app.server.views import read_request

_T = TypeVar("_T")
_SHOWN = ("id", "status", "progress", "prompt", "model", "seconds", "size", "eta", "error")


def make_tools(paths: ServerPaths) -> FastMCP[None]:
    """The tools of a server that keeps its things in ``paths``. No call of them leaves a session behind."""
    # Whose host and whose page it is has been seen to before anything comes here.
    unguarded = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    tools: FastMCP[None] = FastMCP(
        "Radial", stateless_http=True, json_response=True, streamable_http_path="/", transport_security=unguarded,
        log_level="ERROR",
    )  # fmt: skip
    tools._mcp_server.version = __version__  # else that of the protocol's own package

    async def answer(context: Context[Any, Any, Any], work: Callable[[Service], _T]) -> _T:
        asked: Any = context.request_context.request
        try:
            return await run_in_threadpool(lambda: work(Service(paths, asked.scope["state"]["visitor"])))
        except RadialError as error:
            raise ToolError(paths.without_paths(str(error))) from error

    @tools.tool()
    async def generate_video(
        context: Context[Any, Any, Any],
        prompt: Annotated[str, Field(description="what the clip shows")],
        model: Annotated[str, Field(description="a model's name; tiny works everywhere")] = "tiny",
        seconds: Annotated[float, Field(description="length of the clip; 0 for the model's own")] = 0,
        size: Annotated[str, Field(description="WIDTHxHEIGHT in pixels; empty for the model's own")] = "",
        seed: Annotated[int, Field(description="the same seed gives the same clip; -1 draws one")] = -1,
    ) -> dict[str, Any]:
        """Put a video into the queue. It is made in the background: ask video_status until its status is completed."""
        fields: dict[str, Any] = {"prompt": prompt, "model": model, "seed": seed}
        fields |= ({"seconds": seconds} if seconds else {}) | ({"size": size} if size else {})

        def add(service: Service) -> dict[str, Any]:
            written, output, finish = read_request(fields)
            (job,) = service.add([service.check(written)], output, finish)
            return _short(service, job)

        return await answer(context, add)

    @tools.tool()
    async def video_status(
        context: Context[Any, Any, Any],
        video_id: Annotated[str, Field(description="what generate_video returned", max_length=100)],
    ) -> dict[str, Any]:
        """How a video stands, and where its file can be fetched once it is completed."""
        return await answer(context, lambda service: _short(service, service.get(video_id)))

    @tools.tool()
    async def list_videos(
        context: Context[Any, Any, Any], limit: Annotated[int, Field(description="how many", ge=1, le=100)] = 10
    ) -> list[dict[str, Any]]:
        """The latest videos, those that wait and those that ended."""

        def find(service: Service) -> list[dict[str, Any]]:
            jobs = service.store.page(UNFINISHED + FINISHED, owner=service.visitor.scope, limit=limit)
            return [_short(service, job) for job in jobs]

        return await answer(context, find)

    return tools


class AgentsDoor:
    """ASGI middleware: agents post JSON, and nothing else gets to the protocol's own code. A stream that they may open
    beside that would tell them nothing here."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on what may be a call."""
        if scope["method"] != "POST":
            await problem("agents post here", 405, headers={"allow": "POST"})(scope, receive, send)
            return
        body = await read_body(receive)
        try:
            json.loads(body)
        except (ValueError, RecursionError):
            await problem("the body is no JSON", 400)(scope, receive, send)
            return
        await self._app(scope, again(body, receive), send)


def _short(service: Service, job: Job) -> dict[str, Any]:
    video = service.view(job).model_dump(mode="json")
    told = {name: video[name] for name in _SHOWN}
    return told | {"content": [f"/v1/videos/{job.id}/content?index={file['index']}" for file in video["files"]]}
