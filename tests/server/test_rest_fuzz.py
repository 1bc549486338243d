"""Whatever is sent that fits the REST interface's description, or does not: an answer of ours, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from serving import serving

from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths

EXAMPLES = 12  # of every operation


def test_no_request_breaks_the_server(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with serving(make_app(ServerPaths(tmp_path / "data", tmp_path / "out"))) as port:
        _try_all(schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json"))


def _try_all(schema: Any) -> None:
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ("/v1/events", "/v1/videos/{id}/events", "/v1/stories/{id}/events"):  # they do not end
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
