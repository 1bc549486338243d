"""The database of jobs: its tables, how those of earlier versions become them, and jobs as their rows."""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from radial.errors import OutputError, RequestError, explain, explain_all, first_line
from radial.plans.settings import DENSITY
from radial.request import GenerationRequest
from radial.stories.request import story_told
from radial.version import __version__
from radial_app.jobs.finishing import Finishing
from radial_app.jobs.job import Job, Output, ResultFile

_VERSION = 7
_SCHEMA = """
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
CREATE INDEX jobs_by_digest ON jobs (digest);
CREATE INDEX jobs_by_batch ON jobs (batch);
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    time REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX events_by_job ON events (job, number);
"""
# What clips have in common that take the same time.
ALIKE = ("model", "height", "width", "num_frames", "num_inference_steps", "attention")
# The same in fields that came later, which earlier jobs have not: with what these mean.
ALIKE_LATER = {
    "cache": "off", "guidance_start": 0.0, "guidance_end": 1.0, "far_field": "drop", "token_order": "raster",
    "decoder": "full", "batched_guidance": False, "density": DENSITY, "strength": 1.0,
    "dense_every": 0, "dense_above": 0.0, "early_density": 1.0, "policy": "", "target_share": 0.0, "target_speed": 0.0,
}  # fmt: skip
# What brings the tables of a version to the next.
_MIGRATIONS = {
    1: """
ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN favourite INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_by_end ON jobs (state, finished);
""",
    2: f"""
UPDATE jobs SET request = '{{}}' WHERE NOT json_valid(request);
CREATE INDEX jobs_alike ON jobs (state, {", ".join(f"json_extract(request, '$.{name}')" for name in ALIKE)}, finished);
""",
    # The first databases of version 1 had no receipts.
    3: """
CREATE TABLE IF NOT EXISTS receipts (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, video INTEGER NOT NULL, receipt TEXT NOT NULL,
    PRIMARY KEY (job, video)
);
CREATE TABLE results (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, video INTEGER NOT NULL, path TEXT NOT NULL,
    PRIMARY KEY (job, video)
);
CREATE INDEX results_by_path ON results (path);
UPDATE jobs SET files = '[]' WHERE NOT json_valid(files) OR json_type(files) != 'array';
INSERT INTO results SELECT jobs.id, key, json_extract(value, '$.path') FROM jobs, json_each(jobs.files)
WHERE json_each.type = 'object' AND json_extract(value, '$.path') IS NOT NULL;
""",
    4: """
ALTER TABLE jobs ADD COLUMN story TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN base TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN pieces INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN film_bytes INTEGER NOT NULL DEFAULT 0;
""",
    5: """
ALTER TABLE jobs ADD COLUMN pack TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN finish TEXT NOT NULL DEFAULT '';
""",
    6: """
ALTER TABLE jobs ADD COLUMN recall REAL;
ALTER TABLE jobs ADD COLUMN attention_error REAL;
""",
}


def open_database(path: Path, patience: float) -> sqlite3.Connection:
    """The database in a file, made or brought to this version where need be.

    Args:
        patience: seconds to wait for a database that another program has locked.

    Raises:
        OutputError: it is of a later version, or broken.
        sqlite3.Error: it cannot be opened.
    """
    database = sqlite3.connect(path, timeout=patience, isolation_level=None)
    database.row_factory = sqlite3.Row
    with explained():
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # a finished job stays finished in a power cut
        database.execute("PRAGMA foreign_keys = ON")
        if database.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
            return database
    with transaction(database):
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise OutputError(f"the jobs in {path.parent} are of a later version of radial; update radial")
        if version < _VERSION:
            steps = [_SCHEMA] if version == 0 else []
            steps += [_MIGRATIONS[older] for older in range(max(1, version), _VERSION)]
            for statement in ";".join(steps).split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")
    return database


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, with the database to ourselves."""
    with explained(), database:
        database.execute("BEGIN IMMEDIATE")
        yield database


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """SQLite's errors in the user's words."""
    try:
        yield
    except sqlite3.OperationalError as error:
        busy, full = "locked" in str(error) or "busy" in str(error), "full" in str(error)
        says = "the jobs are locked by another program" if busy else f"the jobs cannot be kept: {error}"
        problem = OutputError(says)
        problem.errno = errno.EBUSY if busy else errno.ENOSPC if full else None  # what passes
        raise problem from error
    except sqlite3.DatabaseError as error:
        raise OutputError(f"the database of jobs is broken: {error}") from error


def to_row(job: Job) -> dict[str, Any]:
    """The row of a job.

    Raises:
        RequestError: a value of its request came around the rules.
    """
    row = {name: getattr(job, name) for name in (
        "id", "state", "control", "priority", "position", "batch", "source", "digest", "attempts", "worker", "created",
        "owner", "favourite", "base", "pieces", "film_bytes", "pack",
    )}  # fmt: skip
    request = job.request.model_dump_json()
    try:
        GenerationRequest.model_validate_json(request)
    except ValidationError as error:
        raise RequestError(explain_all(error.errors())) from error
    return row | {
        "number": job.index, "request": request, "output": job.output.model_dump_json(), "files": dump_files(job.files),
        "story": "" if job.story is None else json.dumps(job.story.told()),
        "finish": "" if job.finish is None else job.finish.model_dump_json(),
    }  # fmt: skip


def to_job(row: sqlite3.Row) -> Job:
    """The job of a row. What a row says that this version cannot read is its ``problem``, and hides no other row."""
    values = dict(row)
    number, request, output, files, story, finish = (
        values.pop(name) for name in ("number", "request", "output", "files", "story", "finish")
    )
    try:
        read = GenerationRequest.model_validate_json(request)
        return Job(
            request=read, output=Output.model_validate_json(output), files=files_of(files), index=number,
            story=story_told(read, json.loads(story)) if story else None,
            finish=Finishing.model_validate_json(finish) if finish else None, **values,
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        why = explain(error.errors()[0]) if isinstance(error, ValidationError) else first_line(error)
        problem = f"this job cannot be read by radial {__version__}, perhaps a later version wrote it: {why[:300]}"
        return Job(request=_stand_in(request), index=number, problem=problem, **values | {"error": problem})


def _stand_in(text: Any) -> GenerationRequest:
    """A request to show in place of one that cannot be read: its prompt, if nothing else."""
    fields: Any = {}
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        fields = json.loads(text)
    prompt = fields.get("prompt") if isinstance(fields, dict) else None
    prompt = prompt[:20_000] if isinstance(prompt, str) and prompt.strip() else "(cannot be read)"
    return GenerationRequest(prompt=prompt, height=16, width=16, num_frames=1, fps=1, num_inference_steps=1, seed=0,
                             attention="dense")  # fmt: skip


def files_of(text: str) -> tuple[ResultFile, ...]:
    """The videos that a row lists."""
    return tuple(ResultFile(**entry) for entry in json.loads(text))


def dump_files(files: Iterable[ResultFile]) -> str:
    """Videos as a row lists them."""
    return json.dumps([asdict(file) for file in files])
