"""Whatever is sent that fits the REST interface's description, or does not: an answer of ours, never a traceback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings

from radial_app.jobs.store import JobStore
from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths

EXAMPLES = 12  # of every operation


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "data").mkdir()
    with JobStore(tmp_path / "data"):
        pass
    config = uvicorn.Config(make_app(ServerPaths(tmp_path / "data", tmp_path / "out")), port=0, log_level="critical")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(10)


def test_no_request_breaks_the_server(server: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ("/v1/events", "/v1/videos/{id}/events"):  # they do not end
            continue

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy())
        def check(case: Any) -> None:
            answer = case.call(timeout=20)
            assert answer.status_code < 500, (case.method, case.formatted_path, answer.text[:300])
            assert b"Traceback" not in answer.content
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, answer.text[:300]

        check()
        tried += 1
    assert tried > 20
