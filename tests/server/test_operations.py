"""What operators look at: doctor, health, metrics, logs, and a queue under fire."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from test_cli import QUICK, run

from radial.request import make_request
from radial_app.cli import doctor
from radial_app.jobs.job import Job, Output
from radial_app.jobs.store import JobStore
from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths

ROOT = Path(__file__).parents[2]
Capsys = pytest.CaptureFixture[str]


def test_doctor_says_what_there_is(in_empty_folder: Path, capsys: Capsys) -> None:
    code, out, err = run(capsys, "doctor", "--json")
    found = {entry["what"]: entry for entry in json.loads(out)}
    assert code == (1 if any(entry["verdict"] == "problem" for entry in found.values()) else 0), err
    assert found["torch"]["value"].startswith("2.")
    chosen = next(entry["value"] for what, entry in found.items() if what.startswith("attention on"))
    assert chosen.split(":")[0] in ("gather", "triton", "hopper")
    assert "GB free" in found["queue"]["value"]
    code, out, _ = run(capsys, "doctor")
    assert "attention on" in out


def test_doctor_says_what_is_in_the_way(in_empty_folder: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(doctor, "PORT", taken.getsockname()[1])
        code, out, _ = run(capsys, "doctor", "--json")
    found = {entry["what"]: entry for entry in json.loads(out)}
    assert code == 1
    assert found["outputs"]["verdict"] == "problem"
    assert "is taken" in found["port"]["value"]


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_server_renders_and_tells(
    in_empty_folder: Path, data_folder: Path, capsys: Capsys, wan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = run(capsys, "generate", "a red circle", *QUICK, "--model", str(wan_folder), "--seed", "1", "--queue")
    job = queued[1].strip()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "radial_app", "serve", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        with JobStore() as store:
            deadline = time.monotonic() + 1800
            while store.get(job).state != "done":
                assert server.poll() is None, server.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        status, text = get(port, "/healthz")
        assert status == 200
        health = json.loads(text)
        assert (health["status"], health["jobs"]) == ("ok", {"done": 1})
        assert len(health["workers"]) == 1
        status, text = get(port, "/metrics")
        assert status == 200
        assert 'radial_jobs{state="done"} 1.0' in text
        assert "radial_videos_total 1.0" in text
        assert get(port, "/healthz", host="rebound.example")[0] == 400
        code, _, err = run(capsys, "serve", "--port", str(port), "--device", "cpu")
        assert (code, "another server keeps the queue" in " ".join(err.split())) == (2, True)
        monkeypatch.setenv("RADIAL_DATA_DIR", str(data_folder / "other"))
        code, _, err = run(capsys, "serve", "--port", str(port), "--device", "cpu")
        assert (code, f"cannot listen on 127.0.0.1:{port}" in " ".join(err.split())) == (1, True)
        monkeypatch.setenv("RADIAL_DATA_DIR", str(data_folder))
        assert len(json.loads(get(port, "/healthz")[1])["workers"]) == 1  # nobody touched it
    finally:
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=1800)
    assert "Traceback" not in err
    with JobStore() as store:
        assert store.locks.living() == []
    lines = [json.loads(line) for line in (data_folder / "logs" / "worker-cpu.jsonl").read_text().splitlines()]
    assert any("done" in line["message"] for line in lines)


def test_a_queue_that_is_broken_is_not_healthy(tmp_path: Path) -> None:
    import asyncio

    (tmp_path / "jobs.db").write_bytes(b"no database" * 100)
    app: Any = make_app(ServerPaths(tmp_path, tmp_path / "outputs"))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/healthz", "raw_path": b"/healthz", "query_string": b"",
             "headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http", "root_path": "",
             "server": ("localhost", 1), "client": ("localhost", 2)}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 503
    assert b"broken" in sent[1]["body"]


def test_only_this_machine_is_listened_on(in_empty_folder: Path, capsys: Capsys) -> None:
    code, _, err = run(capsys, "serve", "--host", "0.0.0.0")
    assert code == 2
    assert "there are no accounts yet" in " ".join(err.split())


def test_a_short_queue_under_fire(tmp_path: Path, wan_folder: Path) -> None:
    """The short form of benchmarks/chaos.py."""
    spec = importlib.util.spec_from_file_location("chaos", ROOT / "benchmarks" / "chaos.py")
    assert spec is not None
    assert spec.loader is not None
    chaos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chaos)
    options = argparse.Namespace(
        model=str(wan_folder), jobs=3, steps=100, num_frames=9, worker_kills=1, server_kills=1, between=(2.0, 4.0),
        full_disk=False, seed=0, limit=240, server="serve",
    )  # fmt: skip
    report = chaos.run(tmp_path, options)
    assert "3 jobs done exactly once" in report[1]
    assert not report[0].startswith("killed 0 workers and 0 servers")


def test_dead_workers_of_a_machine_that_came_back(data_folder: Path, wan_folder: Path) -> None:
    """After a power cut locks are gone and rows say running: the first who looks puts the jobs back."""
    with JobStore() as store:
        request = make_request(prompt="a", model=str(wan_folder), seed=1).resolve()
        store.add([Job(id="", request=request, output=Output(), state="running", worker="cpu-1-abc", attempts=1)])
        assert [job.state for job in store.find()] == ["running"]
        store.recover()
        assert [job.state for job in store.find()] == ["queued"]
    assert os.listdir(data_folder / "workers") == []
