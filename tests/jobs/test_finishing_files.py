"""Finishing in the queue's rows, in those of older versions, in files of jobs, and as commands."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radial import RequestError
from radial.request import make_request
from radial.video.clip import Video
from radial.video.encoding import Encoding
from radial.video.finishing.steps import make_finish, parse_finish
from radial_app.jobs.command import command_of
from radial_app.jobs.finishing import finishing_after, finishing_of, request_of
from radial_app.jobs.job import Job, Output
from radial_app.jobs.lists.job_files import JobFileError, read_jobs
from radial_app.jobs.schema import _MIGRATIONS, _SCHEMA
from radial_app.jobs.store import JobStore


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return Video(np.full((8, 48, 64, 3), 90, np.uint8), 16).write(tmp_path / "a {clip}.mp4")


@pytest.mark.parametrize("version", [1, 5])
def test_databases_of_older_versions_take_finishing(tmp_path: Path, clip: Path, version: int) -> None:
    database = sqlite3.connect(tmp_path / "jobs.db")
    database.executescript(";".join([_SCHEMA, *(_MIGRATIONS[older] for older in range(1, version))]))
    database.execute(f"PRAGMA user_version = {version}")
    request = make_request(prompt="a", seed=1).resolve()
    row = "INSERT INTO jobs (id, state, position, request, output, created) VALUES ('1a', 'queued', 1, ?, '{}', 1)"
    database.execute(row, (request.model_dump_json(),))
    database.commit()
    database.close()
    beside = finishing_of([clip], make_finish(frames=2, end=0.25))
    with JobStore(tmp_path) as store:
        assert (store.get("1a").finish, store.get("1a").results, store.get("1a").renders) == (None, 1, 1)
        (job,) = store.add([Job(id="", request=request_of([clip]), finish=beside, output=Output())])
    with JobStore(tmp_path) as store:
        found = store.get(job.id)
        assert (found.finish, found.results, found.renders) == (beside, 1, 0)
        assert (beside.num_frames, beside.fps, beside.width, beside.height) == (8, 32.0, 64, 48)
        assert found.request.prompt == "a {clip}", "it stands for a clip that tells nothing"
        assert str(clip) in store.inputs_of_unfinished()
        assert command_of(found) == f"radial finish '{clip}' --end 0.25 --frames 2"
        database = sqlite3.connect(tmp_path / "jobs.db")
        database.execute("UPDATE jobs SET finish = '{}' WHERE id = ?", (job.id,))
        database.commit()
        assert "cannot be read by radial" in store.get(job.id).problem


def test_job_files_say_what_is_done_afterwards(tmp_path: Path) -> None:
    (tmp_path / "wind.wav").write_bytes(b"")
    (tmp_path / "jobs.yaml").write_text(
        "defaults: {model: tiny, seed: 3}\n"
        "jobs:\n"
        "  - a plain clip\n"
        "  - {prompt: a, finish: {frames: 2, sound: wind.wav}, num_videos: 2}\n"
        "  - {prompt: a, grid: {finish: ['frames=2', 'scale=2, aspect=9:16']}}\n"
        "  - {story: [a, b], seconds: 0.5, finish: loop=2}\n"
    )
    plain, both, one, other, story = read_jobs(tmp_path / "jobs.yaml", output=Output())
    assert plain.finish is None
    assert both.finish is not None
    assert (both.finish.what, both.renders, both.results) == (
        make_finish(frames=2, sound=str(tmp_path / "wind.wav")), 2, 4,
    )  # fmt: skip
    assert one.digest != other.digest
    assert other.finish is not None
    assert other.finish.what == make_finish(scale=2, aspect="9:16")
    assert (story.story is not None, story.results) == (True, 2)
    assert command_of(other).endswith("--finish aspect=9:16,scale=2.0")
    (tmp_path / "jobs.csv").write_text('prompt,finish\na,"frames=4, reverse"\n')
    (row,) = read_jobs(tmp_path / "jobs.csv", output=Output())
    assert row.finish is not None
    assert row.finish.what == make_finish(frames=4, reverse=True)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("frames", "finish is a list such as frames=2, scale=2, not 'frames'"),
        ("pixels=2", "finish has no 'pixels'; known are start, end"),
        ({"frames": 3}, "frames must be 1, 2 or 4, not 3"),
        (3, "finish must be text such as frames=2"), ("scale=x", "scale must be"),
        ("frames=1", "nothing is to be done"),
        ("sound=gone.wav", "sound: no such file"), ("upscaler=a.pth", "must be a .safetensors file, not 'a.pth'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_with_its_line(given: Any, problem: str, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"prompt": "a", "finish": given}))
    with pytest.raises(JobFileError, match=rf"jobs.jsonl:1: .*{problem}"):
        read_jobs(tmp_path / "jobs.jsonl", output=Output())


def test_only_clips_are_finished() -> None:
    with pytest.raises(RequestError, match="a folder of frames is not finished"):
        finishing_after(parse_finish("frames=2"), Encoding(format="png"))
