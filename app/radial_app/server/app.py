"""The HTTP application: health, metrics, the REST interface, the login and, where it is wanted, the studio."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.exceptions import HTTPException

from radial.errors import OutputError, RadialError
from radial.version import __version__
from radial_app.jobs.store import JobStore
from radial_app.server import login
from radial_app.server.access import Guard
from radial_app.server.answers import InvalidFields, field_of, problem
from radial_app.server.limits.streams import Polls
from radial_app.server.limits.turns import Turns
from radial_app.server.mcp import AgentsDoor, make_tools
from radial_app.server.routes import (
    adapters,
    downloads,
    files,
    keys,
    models,
    pictures,
    policies,
    presets,
    stories,
    trash,
    tuning,
    videos,
)
from radial_app.server.service import Conflict, Missing, ServerPaths

_THREADS = 128  # for requests: those of several visitors who each have their most
_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>REST interface - Radial</title><link rel="icon" href="/ui/icon.svg"><script src="/ui/theme.js"></script>
<link rel="stylesheet" href="/ui/tokens.css"><link rel="stylesheet" href="/ui/docs.css">
<script type="module" src="/ui/docs.js"></script></head><body><main>Loading...</main></body></html>"""


class Page(Protocol):
    """What a server shows at ``/``; its files lie in the folder ``assets``."""

    assets: Path

    def protect(self, app: FastAPI) -> None:
        """Put a guard of its own around its routes, within those of the server."""

    def mount(self, app: FastAPI) -> FastAPI:
        """The application with the page."""


def make_app(
    paths: ServerPaths, health: Callable[[], str] = lambda: "", *, accounts: bool = False, hosts: Iterable[str] = (),
    open_page: Callable[[ServerPaths], Page] | None = None,
) -> FastAPI:  # fmt: skip
    """The application of a server.

    Args:
        paths: where it keeps what it has.
        health: what is amiss with its workers, or nothing.
        accounts: whether visitors must log in; else everybody is the user of this machine.
        hosts: names by which it may be called, besides addresses and the machine's own names.
        open_page: makes what is shown at ``/``.
    """
    tools = make_tools(paths)
    agents = tools.streamable_http_app()

    @contextlib.asynccontextmanager
    async def live(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        async with tools.session_manager.run():
            yield

    app = FastAPI(
        title="Radial", version=__version__, description="Video generation with radial attention.", redoc_url=None,
        docs_url=None, lifespan=live,
    )  # fmt: skip
    app.state.is_ending = bool  # whoever runs it says when it ends, which streams should not hold up
    page = None if open_page is None else open_page(paths)
    if page is not None:
        page.protect(app)
    app.add_middleware(Turns)
    app.add_middleware(Polls, paths=paths)
    app.add_middleware(Guard, folder=paths.data, accounts=accounts, hosts=tuple(hosts))
    registry = CollectorRegistry()
    registry.register(_QueueCollector(paths.data))
    rooms = (videos, stories, files, models, presets, adapters, policies, pictures, downloads, trash, tuning, keys)
    for room in rooms:
        app.include_router(room.make_router(paths))
    app.include_router(login.make_router(paths.data))
    app.mount("/mcp", AgentsDoor(agents))
    assets = StaticFiles(directory=Path(__file__).with_name("assets"))
    if page is not None:
        assets.all_directories.append(page.assets)
    app.mount("/ui", assets)
    app.add_exception_handler(RadialError, _teller(paths))
    app.add_exception_handler(RequestValidationError, _teller_of_invalid(paths))
    app.add_exception_handler(HTTPException, _tell_http)

    @app.get("/healthz", tags=["server"])
    def healthz(request: Request, response: Response) -> dict[str, Any]:
        """Whether jobs can be kept, and whether somebody renders them; how many, to admins."""
        try:
            with JobStore(paths.data, patience=1) as store:
                store.check_writable()
                jobs, workers, unreadable = store.counts(), store.locks.living(), store.unreadable()
        except OutputError as error:
            response.status_code = 503
            return {"status": "broken"} | ({"problem": str(error)} if request.state.visitor.admin else {})
        problem = health()
        if problem:
            response.status_code = 503
        status = "broken" if problem else "ok"
        if not request.state.visitor.admin:
            return {"status": status}
        return {"status": status, "problem": problem, "jobs": jobs, "workers": workers, "unreadable": unreadable}

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        """The REST interface for people; FastAPI's own page would fetch its code from elsewhere."""
        return HTMLResponse(_DOCS)

    @app.get("/metrics", tags=["server"])
    def metrics() -> Response:
        """The queue for Prometheus."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return app if page is None else page.mount(app)


def _teller(paths: ServerPaths) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def tell(_request: Request, error: Exception) -> JSONResponse:
        message = paths.without_paths(str(error))
        if isinstance(error, OutputError):
            if error.errno == errno.EBUSY:  # it passes
                return problem(message, 503, headers={"retry-after": "5"})
            return problem(message, 507)
        status = 404 if isinstance(error, Missing) else 409 if isinstance(error, Conflict) else 422
        return problem(message, status, field_of(error))

    return tell


async def _tell_http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = problem(str(error.detail), error.status_code)
    answer.headers.update(error.headers or {})
    return answer


def _teller_of_invalid(paths: ServerPaths) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def tell(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        told = InvalidFields([dict(one) | {"loc": one["loc"][1:] or one["loc"]} for one in error.errors()])
        return problem(paths.without_paths(str(told)), 422, told.param)

    return tell


class _QueueCollector:
    """The queue as it is when somebody asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Any]:
        with JobStore(self._folder) as store:
            counts, workers = store.counts(), store.locks.living()
            videos, seconds = store.totals()
        jobs = GaugeMetricFamily("radial_jobs", "Jobs by state", labels=["state"])
        for state in ("queued", "running", "paused", "done", "failed", "cancelled"):
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("radial_workers", "Workers that live", value=len(workers))
        yield CounterMetricFamily("radial_videos", "Videos finished, of the jobs still listed", value=videos)
        yield CounterMetricFamily("radial_render_seconds", "Seconds spent on them", value=seconds)
