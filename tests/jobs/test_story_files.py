"""Stories in the queue's rows, in those of older versions, and in files of jobs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from radial import RequestError
from radial.request import make_request
from radial.stories.fields import make_story
from radial.stories.script import read_entries, read_story
from radial_app.cli import main as cli
from radial_app.jobs.job import Job, Output, digest_of
from radial_app.jobs.lists.job_files import JobFileError, read_jobs
from radial_app.jobs.schema import _MIGRATIONS, _SCHEMA
from radial_app.jobs.store import JobStore


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_databases_of_older_versions_take_stories(tmp_path: Path, version: int) -> None:
    database = sqlite3.connect(tmp_path / "jobs.db")
    database.executescript(";".join([_SCHEMA, *(_MIGRATIONS[older] for older in range(1, version))]))
    database.execute(f"PRAGMA user_version = {version}")
    request = make_request(prompt="a", seed=1).resolve()
    row = "INSERT INTO jobs (id, state, position, request, output, created) VALUES ('1a', 'queued', 1, ?, '{}', 1)"
    database.execute(row, (request.model_dump_json(),))
    database.commit()
    database.close()
    story = make_story(read_story("a star\n# cut\nb: a ring"), {"seed": 2, "seconds": 0.5})
    with JobStore(tmp_path) as store:
        old = store.get("1a")
        assert (old.story, old.base, old.pieces, old.request) == (None, "", 0, request)
        (job,) = store.add([Job(id="", request=story.request, story=story, base="/x", output=Output())])
    with JobStore(tmp_path) as store:
        assert (store.get(job.id).story, store.get(job.id).base) == (story, "/x")
        assert [one.id for one in store.page(("queued",), stories=True)] == [job.id]
        (copy,) = store.duplicate([job.id], seed=7)
        assert copy.story is not None
        assert (copy.story.request.seed, copy.story.lines) == (7, story.lines)
        with pytest.raises(RequestError, match="height of a story that is queued stays as it is"):
            store.duplicate([job.id], height=64)
        database = sqlite3.connect(tmp_path / "jobs.db")
        database.execute("UPDATE jobs SET story = '{}' WHERE id = ?", (copy.id,))
        database.commit()
        assert "cannot be read by radial" in store.get(copy.id).problem


def test_job_files_hold_stories(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(
        "defaults: {model: tiny, seed: 3}\n"
        "jobs:\n"
        "  - a plain clip\n"
        "  - story: |\n"
        "      anna: a red star\n"
        "      # cut\n"
        "      1s anna: spins\n"
        "    seconds: 0.5\n"
        "    grid: {seed: [1, 2]}\n"
        "  - story: [{prompt: a ring, remember: pin}, {prompt: falls, name: ben, cut: true, seed: 5, remember: 1}]\n"
        "    causal: true\n"
        "    remember: radial\n"
        "    memory_frames: 2\n"
    )
    clip, one, two, chunks = read_jobs(file, output=Output())
    assert clip.story is None
    assert one.story is not None
    assert chunks.story is not None
    assert [line.cut for line in one.story.lines] == [False, True]
    assert (one.story.seconds, one.story.lines[1].seconds, one.request.seed, two.request.seed) == (0.5, 1.0, 1, 2)
    assert one.digest != two.digest
    assert one.request.prompt == "anna: a red star"
    assert (chunks.story.way, chunks.story.memory.kind) == ("chunks", "radial")  # type: ignore[union-attr]
    entries = [{"prompt": "a ring"}, {"prompt": "falls", "name": "ben", "cut": True, "seed": 5}]
    marked = [entries[0] | {"remember": "pin"}, entries[1] | {"remember": 1}]
    assert chunks.story.lines == read_entries(marked)
    with JobStore(tmp_path / "data") as store:
        assert store.get(store.add([chunks])[0].id).story == chunks.story
    usual = chunks.story.with_lines(read_entries(entries))
    assert not any("remember" in line for line in usual.told()["lines"]), "as jobs of before are known"
    assert digest_of(chunks.request, Output(), story=usual) != digest_of(chunks.request, Output(), story=chunks.story)
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"story": ["a", "b"], "seed": 3}))
    (told,) = read_jobs(tmp_path / "jobs.jsonl", output=Output())
    assert told.story is not None
    assert len(told.story.lines) == 2


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"story": ["a", ""]}, "story line 2 is empty"), ({"story": []}, "the story is empty"),
        ({"story": ["a"], "prompt": "b"}, "story and prompt say the same"), ({"story": 3}, "must be a list of prompts"),
        ({"prompt": "a", "remember": "radial"}, "remember is of a story, and this is a clip"),
        ({"story": ["a"], "num_videos": 2}, "a story takes no num_videos"),
        ({"story": ["a"], "output": "a.webm"}, "a story becomes an MP4 of H.264"),
        ({"story": ["a"], "remember": "all"}, "remember must be"), ({"story": ["a"], "model": "mochi"}, "make a story"),
        ({"story": [{"prompt": "a", "seed": -1}]}, "a seed is a whole number from 0"),
        ({"story": "# remember: pin\na\nb"}, "line 1 says how it is remembered, and this story is made window by"),
        ({"story": ["a", {"prompt": "b", "remember": 2}], "causal": True}, "as segment 2, which is itself"),
    ],
)  # fmt: skip
def test_what_is_no_story_in_a_job_file(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(JobFileError, match=f"jobs.jsonl:1: .*{problem}"):
        read_jobs(file, output=Output())


def test_the_command_puts_a_story_into_the_queue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data_folder: Path
) -> None:
    (tmp_path / "lines.txt").write_text("anna: a red star\nanna: spins")
    with pytest.raises(SystemExit) as stop:
        cli.main(["story", str(tmp_path / "lines.txt"), "--queue", "--seconds", "0.5",
                  "--output", str(tmp_path / "film.mp4")])  # fmt: skip
    assert not stop.value.code
    id_ = capsys.readouterr().out.strip()
    with JobStore() as store:
        job = store.get(id_)
        assert job.story is not None
        assert (job.state, job.output.path(job.name_values(job.request, 0))) == ("queued", tmp_path / "film.mp4")
    with pytest.raises(SystemExit):
        cli.main(["jobs", "list"])
    assert "a story of 2" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        cli.main(["jobs", "show", id_])
    assert json.loads(capsys.readouterr().out)["story"]["way"] == "windows"


def test_a_hard_cut_where_a_film_goes_on_is_one() -> None:
    assert read_story("# cut\na ring", {})[0].cut
    assert not read_story("# cut\na ring")[0].cut
