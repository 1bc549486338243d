"""The queue over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.middleware.trustedhost import TrustedHostMiddleware

from radial.errors import OutputError
from radial_app.server import Caretaker
from radial_app.store import JobStore


def make_app(folder: Path, caretaker: Caretaker | None = None) -> FastAPI:
    """The HTTP application: ``/healthz`` and ``/metrics``."""

    app = FastAPI(title="Radial")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    registry = CollectorRegistry()
    registry.register(_QueueCollector(folder))

    @app.get("/healthz")
    def health(response: Response) -> dict[str, Any]:
        """Whether jobs can be kept, and whether somebody renders them."""
        try:
            with JobStore(folder) as store:
                jobs, workers = store.counts(), store.locks.living()
        except OutputError as error:
            response.status_code = 503
            return {"status": "broken", "problem": str(error)}
        problem = caretaker.problem if caretaker is not None else ""
        if caretaker is not None and not caretaker.is_alive():
            problem = "nobody looks after the workers any more"
        if problem:
            response.status_code = 503
        return {"status": "broken" if problem else "ok", "problem": problem, "jobs": jobs, "workers": workers}

    @app.get("/metrics")
    def metrics() -> Response:
        """The queue for Prometheus."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return app


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
