"""The HTTP application: health, metrics, the REST interface, the login and, where it is wanted, the studio."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.exceptions import HTTPException

from radial import __version__
from radial.errors import OutputError, RadialError, RequestError
from radial.request import explain
from radial_app.server import Caretaker
from radial_app.store import JobStore
from radial_app.web import downloads, files, login, tuning, videos
from radial_app.web.answers import problem
from radial_app.web.desk import Conflict, Missing, Place
from radial_app.web.gradio_door import GradioDoor
from radial_app.web.guard import Guard
from radial_app.web.streams import Polls
from radial_app.web.tools import AgentsDoor, make_tools
from radial_app.web.turns import Turns

if TYPE_CHECKING:
    from radial_app.studio.page import StudioPage

_THREADS = 128  # for requests: those of several visitors who each have their most
_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Radial - REST interface</title><link rel="stylesheet" href="/ui/docs.css">
<script type="module" src="/ui/docs.js"></script></head><body><main>Loading...</main></body></html>"""


def make_app(
    place: Place, caretaker: Caretaker | None = None, *, accounts: bool = False, hosts: Iterable[str] = (),
    with_studio: bool = False,
) -> FastAPI:  # fmt: skip
    """The application of a server.

    Args:
        place: where it keeps what it has.
        caretaker: who looks after its workers.
        accounts: whether visitors must log in; else everybody is the user of this machine.
        hosts: names by which it may be called, besides addresses and the machine's own names.
        with_studio: whether the studio is served at ``/``.
    """
    tools = make_tools(place)
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
    page = _make_page(place) if with_studio else None
    if page is not None:
        app.add_middleware(GradioDoor, events=page.events)
    app.add_middleware(Turns)
    app.add_middleware(Polls, place=place)
    app.add_middleware(Guard, folder=place.data, accounts=accounts, hosts=tuple(hosts))
    registry = CollectorRegistry()
    registry.register(_QueueCollector(place.data))
    app.include_router(videos.make_router(place))
    app.include_router(files.make_router(place))
    app.include_router(downloads.make_router(place))
    app.include_router(tuning.make_router(place))
    app.include_router(login.make_router(place.data))
    app.mount("/mcp", AgentsDoor(agents))
    app.mount("/ui", StaticFiles(directory=Path(__file__).with_name("assets")))
    app.add_exception_handler(RadialError, _teller(place))
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)

    @app.get("/healthz", tags=["server"])
    def health(request: Request, response: Response) -> dict[str, Any]:
        """Whether jobs can be kept, and whether somebody renders them; how many, to admins."""
        try:
            with JobStore(place.data, patience=1) as store:
                store.check_writable()
                jobs, workers, unreadable = store.counts(), store.locks.living(), store.unreadable()
        except OutputError as error:
            response.status_code = 503
            return {"status": "broken"} | ({"problem": str(error)} if request.state.visitor.admin else {})
        problem = caretaker.problem if caretaker is not None else ""
        if caretaker is not None and not caretaker.is_alive():
            problem = "nobody looks after the workers any more"
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

    return app if page is None else _with_studio(app, page)


def _make_page(place: Place) -> StudioPage:
    """The studio's page.

    Raises:
        RequestError: Gradio is not installed.
    """
    # Read when Gradio is first imported: nothing is sent or kept elsewhere.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(place.data / "uploads")}
    try:
        from radial_app.studio.page import make_page
    except ImportError as error:
        raise RequestError("the studio needs more packages: pip install 'radial-video[studio]'") from error

    # What the first check needs takes seconds to load; nobody should wait for it.
    threading.Thread(target=lambda: importlib.import_module("radial.plan_sketch"), daemon=True).start()
    return make_page(place)


def _with_studio(app: FastAPI, page: StudioPage) -> FastAPI:
    """The application with the studio at ``/``."""
    import gradio

    from radial_app.studio.page import HEAD, theme

    app.include_router(page.router)
    mounted = gradio.mount_gradio_app(
        app, page.blocks, "/", head=HEAD, theme=theme(), footer_links=[], run_history=False, ssr_mode=False,
        show_error=False, max_file_size=1, allowed_paths=[], blocked_paths=["/"], mcp_server=False, pwa=False,
        auth_dependency=lambda request: request.state.visitor.name or "local",
    )  # fmt: skip
    # Mounted pages are not checked for the files that they name until they count as launched: none may be named here.
    page.blocks.has_launched = True
    # Gradio's own queue, which nothing goes through, looks for work a thousand times a second: a tenth of a core where
    # clips are rendered.
    page.blocks._queue.sleep_when_free = 0.05
    return mounted


def _teller(place: Place) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def tell(_request: Request, error: Exception) -> JSONResponse:
        message = place.without_paths(str(error))
        if isinstance(error, OutputError):
            if error.errno == errno.EBUSY:  # it passes
                return problem(message, 503, headers={"retry-after": "5"})
            return problem(message, 507)
        return problem(message, 404 if isinstance(error, Missing) else 409 if isinstance(error, Conflict) else 422)

    return tell


async def _tell_http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = problem(str(error.detail), error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _tell_invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [dict(one) | {"loc": one["loc"][1:] or one["loc"]} for one in error.errors()]
    param = ".".join(map(str, problems[0]["loc"])) if problems else None
    return problem("; ".join(explain(one) for one in problems[:10]), 422, param)


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
