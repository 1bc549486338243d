"""The database of jobs: its tables, and jobs as its rows."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError

from radial.errors import OutputError, RequestError, first_line
from radial.request import GenerationRequest, explain
from radial.version import __version__
from radial_app.jobs.job import Job, Output, ResultFile, State
from radial_app.jobs.locks import WorkerLocks

_VERSION = 4
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
}
EventKind = Literal["state", "stage", "note", "error", "file"]


def data_folder(chosen: str | Path | None = None) -> Path:
    """The folder of jobs, snapshots and logs: the chosen one, ``RADIAL_DATA_DIR``, or the platform's own."""
    import platformdirs

    found = chosen or os.environ.get("RADIAL_DATA_DIR") or platformdirs.user_data_dir("radial", appauthor=False)
    return Path(found).expanduser().absolute()


class Database:
    """The tables in a data folder. Each thread and process opens its own.

    Args:
        patience: seconds to wait for a database that another program has locked.

    Raises:
        OutputError: the folder cannot be written, or the database is busy or broken.
    """

    def __init__(self, folder: Path | None = None, *, patience: float = 30.0) -> None:
        self.folder = data_folder(folder)
        try:
            keep_private(self.folder)
            for name in ("workers", "snapshots", "previews", "logs"):
                keep_private(self.folder / name)
            self._database = sqlite3.connect(self.folder / "jobs.db", timeout=patience, isolation_level=None)
            for name in ("jobs.db", "jobs.db-wal", "jobs.db-shm"):
                _close_to_others(self.folder / name)
        except (OSError, sqlite3.Error) as error:
            raise OutputError(
                f"cannot keep jobs in {self.folder}: {error}; name another folder with --data-dir"
            ) from error
        self._database.row_factory = sqlite3.Row
        self.locks = WorkerLocks(self.folder / "workers")
        with explained():
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")  # a finished job stays finished in a power cut
            self._database.execute("PRAGMA foreign_keys = ON")
            if self._database.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
                return
        with self._transaction() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise OutputError(f"the jobs in {self.folder} are of a later version of radial; update radial")
            if version < _VERSION:
                steps = [_SCHEMA] if version == 0 else []
                steps += [_MIGRATIONS[older] for older in range(max(1, version), _VERSION)]
                for statement in ";".join(steps).split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, with the database to ourselves."""
        with explained():
            try:  # Ctrl+C may come anywhere in here
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def add(self, jobs: Iterable[Job]) -> list[Job]:
        """Put jobs at the end of the queue, all or none."""
        added = []
        with self._transaction() as database:
            last = database.execute("SELECT COALESCE(MAX(position), 0) FROM jobs").fetchone()[0]
            for place, job in enumerate(jobs, 1):
                job = replace(job, id=job.id or new_id(), position=last + place, created=time.time())
                row = _to_row(job)
                names = ", ".join(row)
                database.execute(f"INSERT INTO jobs ({names}) VALUES ({', '.join(':' + name for name in row)})", row)
                added.append(job)
        return added

    def get(self, id_: str) -> Job:
        """The job of an id, or of the beginning of one.

        Raises:
            RequestError: there is none, or several.
        """
        with explained():
            rows = list(self._database.execute("SELECT * FROM jobs WHERE id = ?", (id_,)))
            if not rows and id_.isalnum():
                rows = list(self._database.execute("SELECT * FROM jobs WHERE id LIKE ? LIMIT 2", (f"{id_}%",)))
        if len(rows) != 1:
            raise RequestError(f"no job {id_!r}; `radial jobs list` shows them" if not rows else f"several jobs {id_}*")
        return to_job(rows[0])

    def find_one(self, id_: str) -> Job | None:
        """The job of exactly this id, where there is one."""
        with explained():
            row = self._database.execute("SELECT * FROM jobs WHERE id = ?", (id_,)).fetchone()
        return to_job(row) if row else None

    def job_of_file(self, path: str, owner: str | None = None) -> tuple[str, int] | None:
        """The job, of all or of one owner, that a video is of, and which of its videos."""
        with explained():
            row = self._database.execute(
                "SELECT job, results.video FROM results JOIN jobs ON id = job "
                "WHERE path = ? AND owner = COALESCE(?, owner) LIMIT 1",
                (path, owner),
            ).fetchone()
        return (row[0], int(row[1])) if row else None

    def inputs_of_unfinished(self) -> set[str]:
        """The files that jobs start from which wait, run, are paused, or failed and may be tried again."""
        names = ("image", "last_image", "extend")
        fields = ", ".join(f"json_extract(request, '$.{name}')" for name in names)
        with explained():
            rows = self._database.execute(
                f"SELECT {fields} FROM jobs WHERE state IN ('queued', 'running', 'paused', 'failed')"
            )
            return {path for row in rows for path in row if path is not None}

    def goes_on_from(self, paths: Iterable[str]) -> str | None:
        """A job that has not ended and extends one of these files."""
        wanted = set(paths)
        with explained():
            rows = self._database.execute(
                "SELECT id, json_extract(request, '$.extend') FROM jobs WHERE state IN ('queued', 'running', 'paused')"
            )
            return next((id_ for id_, path in rows if path in wanted), None) if wanted else None

    def states(self, ids: Iterable[str]) -> dict[str, State]:
        """How certain jobs stand, in the order given; removed ones are not among them."""
        wanted, found = list(ids), {}
        with explained():
            for start in range(0, len(wanted), 500):
                some = wanted[start : start + 500]
                marks = ", ".join("?" for _ in some)
                rows = self._database.execute(f"SELECT id, state FROM jobs WHERE id IN ({marks})", some)
                found.update({row["id"]: row["state"] for row in rows})
        return {id_: found[id_] for id_ in wanted if id_ in found}

    def _tell(self, job: str, kind: EventKind, text: str) -> None:
        self._database.execute(
            "INSERT INTO events (job, time, kind, text) VALUES (?, ?, ?, ?)", (job, time.time(), kind, text[:20_000])
        )

    def forget_run(self, job: str) -> None:
        """Remove what only a job that goes on needs."""
        for path in (self.snapshot_path(job), self.preview_path(job)):
            with contextlib.suppress(OSError):
                path.unlink()

    def snapshot_path(self, job: str) -> Path:
        """Where a job keeps how far it is."""
        return self.folder / "snapshots" / f"{job}.safetensors"

    def preview_path(self, job: str) -> Path:
        """Where a running job shows what it is at, now and then."""
        return self.folder / "previews" / f"{job}.webp"


def new_id() -> str:
    """A short id; later ones sort after earlier ones."""
    return f"{int(time.time()):x}{secrets.token_hex(6)}"


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


def keep_private(folder: Path) -> None:
    """Make a folder of the data folder, or close one that others of this machine could look into.

    Raises:
        OutputError: it is everybody's, as /tmp is.
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & stat.S_ISVTX:
        raise OutputError(f"{folder} is shared by all users of this machine: name a folder of its own with --data-dir")
    _close_to_others(folder)


def _close_to_others(path: Path) -> None:
    with contextlib.suppress(OSError):  # not there, or another user's to change
        if (mode := path.stat().st_mode) & 0o077:
            path.chmod(stat.S_IMODE(mode) & ~0o077)


def _to_row(job: Job) -> dict[str, Any]:
    row = {name: getattr(job, name) for name in (
        "id", "state", "control", "priority", "position", "batch", "source", "digest", "attempts", "worker", "created",
        "owner", "favourite",
    )}  # fmt: skip
    request = job.request.model_dump_json()
    try:
        GenerationRequest.model_validate_json(request)
    except ValidationError as error:  # a value that came around the rules
        raise RequestError("; ".join(explain(problem) for problem in error.errors())) from error
    return row | {
        "number": job.index, "request": request, "output": job.output.model_dump_json(), "files": dump_files(job.files),
    }  # fmt: skip


def to_job(row: sqlite3.Row) -> Job:
    """The job of a row. What a row says that this version cannot read is its ``problem``, and hides no other row."""
    values = dict(row)
    number, request, output, files = (values.pop(name) for name in ("number", "request", "output", "files"))
    try:
        return Job(
            request=GenerationRequest.model_validate_json(request), output=Output.model_validate_json(output),
            files=files_of(files), index=number, **values,
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
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
    return tuple(ResultFile(**entry) for entry in json.loads(text))


def dump_files(files: Iterable[ResultFile]) -> str:
    return json.dumps([asdict(file) for file in files])
