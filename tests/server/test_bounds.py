"""The queue, the command line and workers held against what should not be there: bad rows, clocks, pipes, hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radial import OutputError, RequestError
from radial.request import GenerationRequest, make_request
from radial.video.clip import Video
from radial.video.encoding import Encoding
from radial_app.cli import receipts as receipts_cli
from radial_app.cli.main import main
from radial_app.cli.terminal.text import json_text, printable
from radial_app.jobs import results
from radial_app.jobs.job import Job, Output, ResultFile, changed_request, make_output
from radial_app.jobs.results import proxy_path, settle
from radial_app.jobs.store import LONGEST_WAIT, JobStore
from radial_app.server.limits.sweep import prepare_uploads
from radial_app.tuning.settings import Training
from radial_app.worker.overdue import Overdue
from radial_app.worker.worker import Worker

# The tables of the first databases of version 1, which had no receipts.
FIRST_TABLES = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, control TEXT NOT NULL DEFAULT '', priority INTEGER NOT NULL DEFAULT 0,
    position REAL NOT NULL, number INTEGER NOT NULL DEFAULT 1, batch TEXT NOT NULL DEFAULT '',
    source TEXT NOT NULL DEFAULT '', request TEXT NOT NULL, output TEXT NOT NULL, digest TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '', stage TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, video INTEGER NOT NULL DEFAULT 0, eta REAL,
    error TEXT NOT NULL DEFAULT '', files TEXT NOT NULL DEFAULT '[]', created REAL NOT NULL, started REAL,
    finished REAL, deferred_until REAL NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_state ON jobs (state, priority DESC, position);
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    time REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL
);
PRAGMA user_version = 1;
"""


@pytest.fixture
def store(data_folder: Path) -> JobStore:
    return JobStore(data_folder)


def a_job(**fields: Any) -> Job:
    return Job(id="", request=make_request(**{"prompt": "a", "seed": 1} | fields).resolve())


def spoil(store: JobStore, id_: str, column: str, value: Any) -> None:
    with contextlib.closing(sqlite3.connect(store.folder / "jobs.db", isolation_level=None)) as database:
        database.execute(f"UPDATE jobs SET {column} = ? WHERE id = ?", (value, id_))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("request", json.dumps({"prompt": "of tomorrow", "new_field": 1})), ("request", "[]"), ("request", "{}"),
        ("request", json.dumps({"prompt": "x", "num_frames": 9601})), ("output", '{"name": "../x"}'),
        ("files", '[{"path": 1, "other": 2}]'), ("files", "{"), ("output", "[" * 50_000),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_hides_no_other(
    store: JobStore, capsys: pytest.CaptureFixture[str], column: str, value: str
) -> None:
    bad, good = store.add([a_job(), a_job(prompt="good")])
    spoil(store, bad.id, column, value)
    assert [job.id for job in store.find()] == [bad.id, good.id]
    found = store.get(bad.id)
    assert "cannot be read by radial" in found.problem
    assert store.unreadable() == [bad.id]
    with pytest.raises(RequestError, match="cannot be read"):
        store.edit(bad.id, prompt="b")
    with pytest.raises(RequestError, match="cannot be read"):
        store.duplicate([bad.id])
    with pytest.raises(SystemExit):
        main(["jobs", "list"])
    assert "cannot be read" in " ".join(capsys.readouterr().out.split())
    claimed = store.claim("w")
    assert claimed is not None
    assert claimed.id == good.id  # and the other waits for the version that wrote it
    assert store.claim("w") is None
    assert not Worker(store, until_idle=True)._waits()
    assert store.cancel([bad.id], keep=False) == [bad.id]
    assert store.remove([bad.id]) == [bad.id]


def test_what_is_stored_can_be_read_again(store: JobStore) -> None:
    job = a_job()
    around = job.request.model_copy(update={"num_frames": 9601})
    with pytest.raises(RequestError, match="num_frames must be less than or equal to 4097, not 9601"):
        store.add([replace(job, request=around)])
    assert store.find() == []
    with pytest.raises(RequestError, match="num_frames"):
        make_request(prompt="a", num_frames=4097, snap=True).with_values(num_frames=5000)
    with pytest.raises(RequestError, match="height"):
        GenerationRequest(prompt="a", snap=True).with_values(height=9000)


def test_the_first_databases_gain_what_they_lack(data_folder: Path, tmp_path: Path) -> None:
    job = a_job()
    file = ResultFile("/out/a.mp4", "d", 1, 2.0, True)
    with contextlib.closing(sqlite3.connect(data_folder / "jobs.db")) as database:
        database.executescript(FIRST_TABLES)
        row = (job.request.model_dump_json(), Output().model_dump_json(), results.dump_files([file])
               if hasattr(results, "dump_files") else json.dumps([file.__dict__]))  # fmt: skip
        for id_, state in (("aa", "done"), ("bb", "queued")):
            database.execute("INSERT INTO jobs (id, state, position, request, output, files, created) "
                             "VALUES (?, ?, 1, ?, ?, ?, 1)", (id_, state, *row))  # fmt: skip
        database.execute("INSERT INTO jobs (id, state, position, request, output, files, created) "
                         "VALUES ('cc', 'failed', 2, 'no json', '{}', '{', 1)")  # fmt: skip
        database.commit()
    with JobStore(data_folder) as store:
        assert store.job_of_file("/out/a.mp4") is not None
        assert store.get("cc").problem
        claimed = store.claim("w")
        assert claimed is not None
        store.record_receipt(claimed.id, 0, {"radial": "0"})  # which failed every job after its render
        assert store.receipts(claimed.id) == [{"radial": "0"}]


def test_a_file_is_found_by_an_index(store: JobStore) -> None:
    (job,) = store.add([a_job()])
    store.record_file(job.id, 0, ResultFile("/a.mp4", "d", 1))
    store.record_file(job.id, 0, ResultFile("/a-2.mp4", "d", 1, done=True))
    assert (store.job_of_file("/a.mp4"), store.job_of_file("/a-2.mp4")) == (None, (job.id, 0))
    plan = store._database.execute(
        "EXPLAIN QUERY PLAN SELECT job, results.video FROM results JOIN jobs ON id = job WHERE path = 'x' "
        "AND owner = COALESCE(NULL, owner)"
    ).fetchall()
    assert any("results_by_path" in str(tuple(row)) for row in plan)
    store.remove([job.id])
    assert store.job_of_file("/a-2.mp4") is None


def test_a_job_moves_as_often_as_anybody_likes(store: JobStore) -> None:
    first, *rest = [job.id for job in store.add([a_job(seed=n) for n in range(4)])]
    for turn in range(120):  # two of them, between the first and the last, again and again
        store.move(rest[turn % 2], 2)
        order = [job.id for job in store.find(["queued"])]
        assert order == [first, rest[turn % 2], rest[1 - turn % 2], rest[2]], turn


def test_an_idle_worker_takes_no_lock_and_looks_seldom(store: JobStore, data_folder: Path) -> None:
    store.add([a_job(device="cuda:5", seed=n) for n in range(50)])
    worker = Worker(JobStore(data_folder), device="cpu")
    with contextlib.closing(sqlite3.connect(data_folder / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert worker._next() is None
        assert time.monotonic() - started < 5  # it would have waited for the lock
    looks = []
    plain = worker.store.claim
    worker.store.claim = lambda *a, **k: looks.append(a) or plain(*a, **k)  # type: ignore[method-assign, assignment]
    for _ in range(20):
        assert worker._next() is None
    assert len(looks) <= 1
    store.add([a_job(device="cpu")])
    job = worker._next()
    assert job is not None
    assert job.request.device == "cpu"


def test_a_clock_that_is_set_back_delays_nothing_for_long(store: JobStore) -> None:
    (job,) = store.add([a_job()])
    store.claim("w")
    store.end(job.id, "queued", "waits", wait=30)
    assert store.claim("w") is None
    spoil(store, job.id, "deferred_until", time.time() + LONGEST_WAIT + 5)  # as told before the clock was set back
    assert store.claim("w") is not None


@pytest.mark.parametrize("before", [0o755, 0o777, 0o700])
def test_others_cannot_look_into_the_data_folder(tmp_path: Path, before: int) -> None:
    folder = tmp_path / "data"
    (folder / "snapshots").mkdir(parents=True)
    for path in (folder, folder / "snapshots"):
        path.chmod(before)
    (folder / "jobs.db").touch()
    (folder / "jobs.db").chmod(0o644)
    with JobStore(folder) as store:
        store.add([a_job()])
        JobStore(folder).close()
        for path in [folder, *folder.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.parent != folder, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_of_somebodys_own_stays_as_it_is(tmp_path: Path) -> None:
    """A group's shared queue stays the group's, and what we do not keep is not ours to close."""
    own, shared = tmp_path / "site", tmp_path / "lab"
    own.mkdir()
    own.chmod(0o755)
    (own / "logs").mkdir()
    (own / "uploads").mkdir()
    (own / "uploads" / "customer.pdf").write_text("theirs")
    JobStore(own).close()
    prepare_uploads(own)
    assert stat.S_IMODE(own.stat().st_mode) == 0o755
    assert stat.S_IMODE((own / "jobs.db").stat().st_mode) & 0o077 == 0
    assert (own / "uploads" / "customer.pdf").read_text() == "theirs"
    shared.mkdir()
    (shared / "jobs.db").touch()
    shared.chmod(0o2775)
    JobStore(shared).close()
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2770


def test_the_folder_of_everybody_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(OutputError, match="shared by all users"):
        JobStore(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


@pytest.mark.parametrize(
    ("name", "says"),
    [("a\0b", "no file name should have"), ("\x1b[2J", "no file name should have"), ("x" * 300, "200 are the most"),
     ("é" * 150, "200 are the most")],
)  # fmt: skip
def test_names_that_no_file_can_have_are_refused_before_the_render(name: str, says: str) -> None:
    job = a_job()

    def fill() -> Path:
        return make_output(name=name).path(job.name_values(job.request, 0))

    with pytest.raises(RequestError, match=says):
        fill()


def test_a_job_whose_model_is_gone(store: JobStore, wan_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(wan_folder, tmp_path / "model")
    request = make_request(prompt="a", model=str(tmp_path / "model"), seed=7, num_inference_steps=3).resolve()
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(RequestError, match="give another model"):
        changed_request(request, {"prompt": "b"})
    changed = changed_request(request, {"model": "tiny", "prompt": "b"})
    assert (changed.model, changed.prompt, changed.seed, changed.num_inference_steps) == ("tiny", "b", 7, 20)


def test_a_copy_for_browsers_is_made_after_all(store: JobStore, tmp_path: Path) -> None:
    encoding = Encoding(format="mp4", codec="h265")
    request = make_request(prompt="a", seed=1, height=64, width=64, num_frames=5).resolve()
    job = Job(id="", request=request, output=Output(folder=str(tmp_path), encoding=encoding))
    (job,) = store.add([job])
    path = Video(np.zeros((5, 64, 64, 3), np.uint8), 16, {"radial": "0"}).write(tmp_path / "a.mp4", encoding=encoding)
    for done in (True, False):  # killed after the name was given, before or after that was told
        proxy_path(path).unlink(missing_ok=True)
        file = ResultFile(str(path), results.digest_file(path), 1, done=done)
        settled = settle(store, replace(job, files=(file,)), 0)
        assert settled is not None
        assert settled.done
        assert proxy_path(path).is_file()


def test_what_hangs_is_ended_and_settled_as_asked(store: JobStore, data_folder: Path) -> None:
    """A worker that is stopped, as by a debugger, hears nothing."""
    code = ("import sys, os, time; from pathlib import Path; from radial_app.jobs.store import JobStore\n"
            "store = JobStore(Path(sys.argv[1])); name = f'cpu-{os.getpid()}-abcdef'\n"
            "with store.locks.alive(name):\n"
            "    store.claim(name); print('at work', flush=True); time.sleep(600)")  # fmt: skip
    now = [0.0]
    for control, settled in (("cancel", "cancelled"), ("pause", "paused")):
        (job,) = store.add([a_job()])
        process = subprocess.Popen([sys.executable, "-c", code, str(data_folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGSTOP)
        store.progress(job.id, "denoise", 3, 20, 0, None)
        overdue = Overdue(60, clock=lambda: now[0])
        now[0] = 0.0
        overdue.look(store)
        if control == "pause":
            store.pause([job.id])
        else:
            store.cancel([job.id], keep=False)
        for moment in (0.0, 59.0):
            now[0] = moment
            overdue.look(store)
            assert process.poll() is None
        store.progress(job.id, "denoise", 4, 20, 0, None)  # a sign of life
        now[0] = 70.0
        overdue.look(store)
        assert process.poll() is None
        now[0] = 140.0
        overdue.look(store)
        assert process.wait(10) == -signal.SIGKILL
        found = store.get(job.id)
        assert (found.state, found.control) == (settled, "")
        assert "had not stopped 60 s after it was asked to" in found.error
        store.remove([job.id])


def test_only_the_process_that_holds_a_workers_lock_is_ended(store: JobStore) -> None:
    """Not another of that number, as after a restart or in another container, and not this very one."""
    other = subprocess.Popen(["sleep", "600"], env=os.environ | {"NAME": "radial"})
    try:
        for pid in (other.pid, os.getpid()):
            (job,) = store.add([a_job()])
            with store.locks.alive(f"cpu-{pid}-abcdef"):
                store.claim(f"cpu-{pid}-abcdef", only=job.id)
                store.cancel([job.id], keep=False)
                now = [0.0]
                overdue = Overdue(60, clock=lambda now=now: now[0])  # type: ignore[misc]
                for moment in (0.0, 1000.0):
                    now[0] = moment
                    overdue.look(store)
                assert other.poll() is None
                assert store.get(job.id).state == "running"
    finally:
        other.kill()


def test_a_clip_that_is_to_be_kept_is_waited_for(store: JobStore) -> None:
    """However long its step takes: ended, there would be nothing to keep."""
    (job,) = store.add([a_job()])
    with store.locks.alive("cpu-1-abcdef"):
        store.claim("cpu-1-abcdef")
        store.progress(job.id, "denoise", 3, 20, 0, None)
        store.cancel([job.id], keep=True)
        now = [0.0]
        overdue = Overdue(60, clock=lambda: now[0])
        for moment in (0.0, 1000.0):
            now[0] = moment
            overdue.look(store)
        assert (store.get(job.id).state, store.control_of(job.id)) == ("running", "finish")


def test_a_clip_that_is_being_written_is_waited_for(store: JobStore) -> None:
    (job,) = store.add([a_job()])
    store.claim(f"cpu-{os.getpid()}-abcdef")  # this very process, which must not be ended
    store.progress(job.id, "decode", 20, 20, 0, None)
    store.cancel([job.id], keep=True)
    now = [0.0]
    overdue = Overdue(60, clock=lambda: now[0])
    for moment in (0.0, 1000.0):
        now[0] = moment
        overdue.look(store)
    assert store.get(job.id).state == "running"


def test_what_was_asked_of_a_job_counts_for_more_than_its_attempts(store: JobStore) -> None:
    (job,) = store.add([a_job()])
    store.claim("cpu-1-dead00")
    spoil(store, job.id, "attempts", 9)
    store.pause([job.id])
    store.recover()
    assert store.get(job.id).state == "paused"


@pytest.mark.parametrize("kind", ["pipe", "zero", "private"])
def test_watch_reads_files_alone(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()
    (tmp_path / "private.txt").write_text("a secret line\n")
    path = folder / "a.txt"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "zero" else tmp_path / "private.txt")
    with pytest.raises(SystemExit):
        main(["watch", str(folder), "--until-empty", "--device", "cpu"])
    assert "links, pipes and devices are not read here" in (folder / "a.txt.errors.txt").read_text()
    with JobStore(data_folder) as store:
        assert store.find() == []
    capsys.readouterr()


def test_a_pipe_as_job_file_does_not_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(SystemExit) as ended:
        main(["render", str(tmp_path / "a.txt"), "--dry-run"])
    assert ended.value.code == 2
    assert "is no file" in capsys.readouterr().err


def test_what_files_say_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2Jgone \x9b31m \u202e [bold]x[/bold] \x07"
    receipt = {"radial": evil, "request": {"prompt": evil}}
    path = Video(np.zeros((3, 32, 32, 3), np.uint8), 8, receipt).write(tmp_path / "a.mp4")
    with pytest.raises(SystemExit):
        main(["receipt", str(path)])
    out = capsys.readouterr().out
    assert json.loads(out)["radial"] == evil  # nothing is lost
    assert out.replace("\n", "").isprintable()
    told = receipts_cli._told({"x": evil})
    assert "\\[bold]" in told
    assert printable(told) == told
    assert json.loads(json_text([evil])) == [evil]


@pytest.mark.parametrize(
    ("more", "says"),
    [("seed = 2020-01-01", "2020-01-01 is a date"), ("x = 07:30:00", "a time"), ("x = nan", "no number"),
     ("x = [[1979-05-27T07:32:00Z]]", "a date"), ("x = " + "[" * 5000, "lines of key = value"), 
     ("output = 'x'", "run's own")],
)  # fmt: skip
def test_settings_of_a_tuning_run_that_are_none(more: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Training(more=more).values()


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    from radial_app.tuning.runs import Tuning
    from radial_app.tuning.settings import Preparation

    told = {"preparation": Preparation(name="good", dataset="d", model="tiny", num_frames=(9,)).model_dump()}
    for name, content in (("good", json.dumps(told)), ("deep", "[" * 50_000), ("list", "[]"),
                          ("odd", json.dumps({"preparation": {"name": "x"}}))):  # fmt: skip
        (tmp_path / "tuning" / name).mkdir(parents=True)
        (tmp_path / "tuning" / name / "run.json").write_text(content)
    runs = {run.name: run.problem for run in Tuning(tmp_path).runs()}
    assert set(runs) == {"good", "deep", "list", "odd"}
    assert all("cannot be read" in runs[name] for name in ("deep", "list", "odd"))
    Tuning(tmp_path).remove("deep")
    assert not (tmp_path / "tuning" / "deep").exists()


def test_a_cluster_of_this_machine_is_for_this_machine() -> None:
    """Nothing listens on another address, and nobody comes in without the token."""
    pytest.importorskip("ray", reason="the cluster extra is not installed")
    code = """
import os, psutil
from radial_app.worker.ray_backend import connect
with connect("local", 30.0) as cluster:
    me = psutil.Process()
    ports = {c.laddr for p in [me, *me.children(recursive=True)] for c in p.net_connections("inet")
             if c.status == psutil.CONN_LISTEN}
    assert len(ports) > 3, ports
    assert all(port.ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1") for port in ports), ports
    assert os.environ["RAY_AUTH_MODE"] == "token"
print("closed")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert run.stdout.strip().endswith("closed"), run.stderr[-2000:]
