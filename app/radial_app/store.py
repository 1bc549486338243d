"""The job store: one SQLite database that command line, studio, REST and workers share.

Everything that must not be lost is a committed row. A worker holds a file lock for as long as it lives, which the
operating system takes back however it dies; that, not a clock, says whether a running job still has its worker.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from radial.errors import OutputError, RequestError
from radial.request import GenerationRequest
from radial_app.jobs import FINISHED, Control, Job, Output, ResultFile, State, changed_request
from radial_app.locks import WorkerLocks

MAX_ATTEMPTS = 5  # of a job that gets no further
_VERSION = 1
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
CREATE TABLE receipts (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, video INTEGER NOT NULL, receipt TEXT NOT NULL,
    PRIMARY KEY (job, video)
);
"""
_WANTED: dict[str, State] = {"pause": "paused", "cancel": "cancelled", "finish": "cancelled"}
EventKind = Literal["state", "stage", "note", "error", "file"]


def data_folder(chosen: str | Path | None = None) -> Path:
    """The folder of jobs, snapshots and logs: the chosen one, ``RADIAL_DATA_DIR``, or the platform's own."""
    import platformdirs

    found = chosen or os.environ.get("RADIAL_DATA_DIR") or platformdirs.user_data_dir("radial", appauthor=False)
    return Path(found).expanduser().absolute()


class JobStore:
    """Jobs in a data folder. Each thread and process opens its own.

    Raises:
        OutputError: the folder cannot be written, or the database is busy or broken.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = data_folder(folder)
        try:
            for name in ("", "workers", "snapshots", "previews", "logs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(self.folder / "jobs.db", timeout=30, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise OutputError(
                f"cannot keep jobs in {self.folder}: {error}; name another folder with --data-dir"
            ) from error
        self._database.row_factory = sqlite3.Row
        self.locks = WorkerLocks(self.folder / "workers")
        with _explained():
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")  # a finished job stays finished in a power cut
            self._database.execute("PRAGMA foreign_keys = ON")
        with self._transaction() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise OutputError(f"the jobs in {self.folder} are of a later version of radial; update radial")
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> JobStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, with the database to ourselves."""
        with _explained():
            try:  # Ctrl+C may come anywhere in here
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    # Writing jobs

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

    def claim(
        self, worker: str, devices: tuple[str, ...] = (), only: str | None = None, batch: str | None = None
    ) -> Job | None:
        """Take the next job that waits, of all or of one batch, or a certain one. ``devices`` are those that the worker
        can render on; jobs that ask for another wait."""
        now = time.time()
        with self._transaction() as database:
            # Where the clock was set back, a date far ahead is none.
            rows = database.execute(
                "SELECT * FROM jobs WHERE state = 'queued' "
                "AND (deferred_until <= ? OR deferred_until > ? + 3600 OR id = ?) "
                "AND id = COALESCE(?, id) AND batch = COALESCE(?, batch) ORDER BY priority DESC, position",
                (now, now, only, only, batch),
            )
            for row in rows:
                job = _to_job(row)
                if devices and job.request.device not in devices:
                    continue
                database.execute(
                    "UPDATE jobs SET state = 'running', control = '', worker = ?, attempts = attempts + 1, error = '', "
                    "started = COALESCE(started, ?), stage = 'load', step = 0, steps = 0, eta = NULL WHERE id = ?",
                    (worker, now, job.id),
                )
                self._tell(job.id, "state", f"begun by {worker}, attempt {job.attempts + 1}")
                return self.get(job.id)
        return None

    def control_of(self, job: str) -> Control:
        """What the user of a running job wants."""
        with _explained():
            row = self._database.execute("SELECT control FROM jobs WHERE id = ?", (job,)).fetchone()
        return row["control"] if row else "cancel"  # a job that was removed is not to go on

    def progress(self, job: str, stage: str, step: int, steps: int, video: int, eta: float | None) -> None:
        """Say how far a running job is."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET stage = ?, step = ?, steps = ?, video = ?, eta = ? WHERE id = ? AND state = 'running'",
                (stage, step, steps, video, eta, job),
            )

    def got_further(self, job: str) -> None:
        """A running job left a snapshot: what comes may fail as often as what was."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET attempts = 1 WHERE id = ? AND state = 'running'", (job,))

    def record_file(self, job: str, index: int, file: ResultFile) -> None:
        """Note a video of a job, before and after it gets its name."""
        with self._transaction() as database:
            files = list(_files(database.execute("SELECT files FROM jobs WHERE id = ?", (job,)).fetchone()["files"]))
            files[index:] = [file]
            database.execute("UPDATE jobs SET files = ? WHERE id = ?", (_dump_files(files), job))
            if file.done:
                self._tell(job, "file", file.path)

    def record_receipt(self, job: str, index: int, receipt: dict[str, Any]) -> None:
        """Keep how a video of a job was made, whether or not its file says so."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO receipts (job, video, receipt) VALUES (?, ?, ?)",
                (job, index, json.dumps(receipt)),
            )

    def end(self, job: str, state: State, error: str = "", *, wait: float = 0.0, failed_attempt: bool = True) -> None:
        """Leave a running job: finished, paused, or queued again, in ``wait`` seconds at the earliest; paused or
        cancelled rather than queued, where its user asked for that."""
        now = time.time()
        with self._transaction() as database:
            if state == "queued":
                row = database.execute("SELECT control FROM jobs WHERE id = ?", (job,)).fetchone()
                state = _WANTED.get(row["control"], "queued") if row else state
            database.execute(
                "UPDATE jobs SET state = ?, control = '', worker = '', error = ?, eta = NULL, deferred_until = ?, "
                "finished = ?, attempts = MAX(0, attempts - ?) WHERE id = ? AND state = 'running'",
                (state, error, now + wait if wait else 0, now if state in FINISHED else None,
                 0 if failed_attempt else 1, job),
            )  # fmt: skip
            self._tell(job, "error" if state == "failed" else "state", f"{state}: {error}" if error else state)

    def recover(self, max_attempts: int = MAX_ATTEMPTS) -> list[Job]:
        """Put jobs whose worker is dead back into the queue; fail those that killed it too often."""
        with _explained():
            workers = [r["worker"] for r in self._database.execute("SELECT DISTINCT worker FROM jobs "
                                                                  "WHERE state = 'running'")]  # fmt: skip
        recovered = []
        for worker in workers:
            with self.locks.if_dead(worker) as dead:
                if not dead:
                    continue
                with self._transaction() as database:
                    rows = database.execute("SELECT * FROM jobs WHERE state = 'running' AND worker = ?", (worker,))
                    for job in [_to_job(row) for row in rows]:
                        where = f"in stage {job.stage}" + (f", step {job.step} of {job.steps}" if job.step else "")
                        poison = job.attempts >= max_attempts
                        state: State = "failed" if poison else _WANTED.get(job.control, "queued")
                        error = f"its worker died {where}" + (f", {job.attempts} times in a row" if poison else "")
                        database.execute(
                            "UPDATE jobs SET state = ?, control = '', worker = '', error = ?, eta = NULL, finished = ? "
                            "WHERE id = ?",
                            (state, error, time.time() if state in FINISHED else None, job.id),
                        )
                        self._tell(job.id, "error", error)
                        recovered.append(job)
        return recovered

    # What users do with jobs

    def pause(self, ids: Iterable[str]) -> list[str]:
        """Hold jobs; running ones stop after the step they are at and keep what they have."""
        return self._control(ids, "pause", ("queued",), "paused")

    def resume(self, ids: Iterable[str]) -> list[str]:
        """Put paused jobs back into the queue, at their old place; those about to pause go on."""
        ids = list(ids)
        with self._transaction() as database:
            database.executemany(
                "UPDATE jobs SET control = '' WHERE id = ? AND state = 'running' AND control = 'pause'",
                [(id_,) for id_ in ids],
            )
        return self._move_state(ids, ("paused",), "queued")

    def cancel(self, ids: Iterable[str], *, keep: bool) -> list[str]:
        """Give jobs up; with ``keep``, running ones decode what they have."""
        return self._control(ids, "finish" if keep else "cancel", ("queued", "paused"), "cancelled")

    def retry(self, ids: Iterable[str]) -> list[str]:
        """Try failed or cancelled jobs again, from their last snapshot where there is one."""
        return self._move_state(ids, ("failed", "cancelled"), "queued")

    def duplicate(self, ids: Iterable[str], **changes: Any) -> list[Job]:
        """The same jobs again, at the end of the queue, with other values of the request."""
        copies = []
        for job in map(self.get, ids):
            request = changed_request(job.request, changes)
            copies.append(Job(id="", request=request, output=job.output, index=job.index, batch=job.batch,
                              source=job.source, priority=job.priority))  # fmt: skip
        return self.add(copies)

    def edit(self, id_: str, **changes: Any) -> Job:
        """Other values of the request of a job that waits.

        Raises:
            RequestError: a value breaks a rule, or the job has begun.
        """
        request = changed_request(self.get(id_).request, changes)
        with self._transaction() as database:
            done = database.execute(
                "UPDATE jobs SET request = ?, digest = '', attempts = 0, files = '[]' "
                "WHERE id = ? AND state IN ('queued', 'paused')",
                (request.model_dump_json(), id_),
            )
            if not done.rowcount:
                state = self.get(id_).state
                raise RequestError(f"job {id_} is {state}: only jobs that wait can be edited; duplicate it")
            self._tell(id_, "state", f"edited: {', '.join(changes)}")
        return self.get(id_)

    def move(self, id_: str, place: int) -> None:
        """Move a waiting job to a place of the queue, from 1; its priority becomes that of its neighbours."""
        with self._transaction() as database:
            rows = list(database.execute(
                "SELECT id, priority, position FROM jobs WHERE state = 'queued' AND id != ? "
                "ORDER BY priority DESC, position", (id_,),
            ))  # fmt: skip
            index = min(max(place - 1, 0), len(rows))
            before, after = rows[index - 1] if index else None, rows[index] if index < len(rows) else None
            if before is not None and after is not None and before["priority"] == after["priority"]:
                priority, position = after["priority"], (before["position"] + after["position"]) / 2
            elif after is not None:
                priority, position = after["priority"], after["position"] - 1
            elif before is not None:
                priority, position = before["priority"], before["position"] + 1
            else:
                return
            database.execute("UPDATE jobs SET priority = ?, position = ? WHERE id = ?", (priority, position, id_))

    def prioritise(self, ids: Iterable[str], priority: int) -> None:
        """Jobs of higher priority go first."""
        with self._transaction() as database:
            for id_ in ids:
                database.execute("UPDATE jobs SET priority = ? WHERE id = ?", (priority, id_))

    def remove(self, ids: Iterable[str]) -> list[str]:
        """Forget jobs that do not run, and their snapshots; their videos stay."""
        removed = []
        with self._transaction() as database:
            for id_ in ids:
                done = database.execute("DELETE FROM jobs WHERE id = ? AND state != 'running'", (id_,))
                removed += [id_] if done.rowcount else []
        for id_ in removed:
            self.forget_run(id_)
        return removed

    def forget_run(self, job: str) -> None:
        """Remove what only a job that goes on needs."""
        for path in (self.snapshot_path(job), self.preview_path(job)):
            with contextlib.suppress(OSError):
                path.unlink()

    def _control(self, ids: Iterable[str], control: Control, waiting: tuple[State, ...], state: State) -> list[str]:
        """Ask running jobs, and settle those that wait at once."""
        asked = []
        with self._transaction() as database:
            for id_ in ids:
                done = database.execute(
                    "UPDATE jobs SET control = ? WHERE id = ? AND state = 'running'", (control, id_)
                ).rowcount
                if not done:
                    marks = ", ".join("?" for _ in waiting)
                    finished = time.time() if state in FINISHED else None
                    done = database.execute(
                        f"UPDATE jobs SET state = ?, finished = ? WHERE id = ? AND state IN ({marks})",
                        (state, finished, id_, *waiting),
                    ).rowcount
                    if done:
                        self._tell(id_, "state", state)
                asked += [id_] if done else []
        if state == "cancelled":
            states = self.states(asked)
            for id_ in asked:
                if states.get(id_) == "cancelled":
                    self.forget_run(id_)
        return asked

    def _move_state(self, ids: Iterable[str], before: tuple[State, ...], state: State) -> list[str]:
        moved: list[str] = []
        with self._transaction() as database:
            for id_ in ids:
                marks = ", ".join("?" for _ in before)
                done = database.execute(
                    "UPDATE jobs SET state = ?, control = '', attempts = 0, error = '', finished = NULL, "
                    f"deferred_until = 0 WHERE id = ? AND state IN ({marks})",
                    (state, id_, *before),
                ).rowcount
                if done:
                    self._tell(id_, "state", state)
                    moved.append(id_)
        return moved

    # Reading

    def get(self, id_: str) -> Job:
        """The job of an id, or of the beginning of one.

        Raises:
            RequestError: there is none, or several.
        """
        with _explained():
            rows = list(self._database.execute("SELECT * FROM jobs WHERE id = ?", (id_,)))
            if not rows and id_.isalnum():
                rows = list(self._database.execute("SELECT * FROM jobs WHERE id LIKE ? LIMIT 2", (f"{id_}%",)))
        if len(rows) != 1:
            raise RequestError(f"no job {id_!r}; `radial jobs list` shows them" if not rows else f"several jobs {id_}*")
        return _to_job(rows[0])

    def find(self, states: Iterable[State] = (), batch: str | None = None, limit: int | None = None) -> list[Job]:
        """Jobs in the order of the queue: running, waiting, then finished ones, the latest first."""
        states = tuple(states)
        conditions: list[str] = ["1"]
        values: list[Any] = []
        if states:
            conditions.append(f"state IN ({', '.join('?' for _ in states)})")
            values += list(states)
        if batch is not None:
            conditions.append("batch = ?")
            values.append(batch)
        with _explained():
            rows = self._database.execute(
                f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY "
                "CASE state WHEN 'running' THEN 0 WHEN 'queued' THEN 1 WHEN 'paused' THEN 1 ELSE 2 END, "
                "CASE WHEN finished IS NULL THEN 0 ELSE -finished END, priority DESC, position LIMIT ?",
                (*values, -1 if limit is None else limit),
            )
            return [_to_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        with _explained():
            rows = self._database.execute("SELECT state, COUNT(*) AS count FROM jobs GROUP BY state")
            return {row["state"]: row["count"] for row in rows}

    def totals(self) -> tuple[int, float]:
        """Videos finished, and the seconds they took."""
        with _explained():
            row = self._database.execute(
                "SELECT COUNT(*), COALESCE(SUM(json_extract(value, '$.seconds')), 0) FROM jobs, json_each(jobs.files) "
                "WHERE json_extract(value, '$.done')"
            ).fetchone()
        return int(row[0]), float(row[1])

    def finished_with(self, digest: str) -> Job | None:
        """A finished job of this digest whose videos are all still there."""
        with _explained():
            rows = self._database.execute("SELECT * FROM jobs WHERE digest = ? AND state = 'done'", (digest,))
            for job in map(_to_job, rows):
                if job.files and all(Path(file.path).exists() and not file.partial for file in job.files):
                    return job
        return None

    def begun_with(self, digest: str) -> Job | None:
        """An unfinished or failed job of this digest, the latest."""
        with _explained():
            row = self._database.execute(
                "SELECT * FROM jobs WHERE digest = ? AND state != 'done' ORDER BY position DESC LIMIT 1", (digest,)
            ).fetchone()
        return _to_job(row) if row else None

    def assign(self, ids: Iterable[str], batch: str) -> None:
        """Make jobs part of another batch."""
        with self._transaction() as database:
            database.executemany("UPDATE jobs SET batch = ? WHERE id = ?", [(batch, id_) for id_ in ids])

    def states(self, ids: Iterable[str]) -> dict[str, State]:
        """How certain jobs stand, in the order given; removed ones are not among them."""
        wanted, found = list(ids), {}
        with _explained():
            for start in range(0, len(wanted), 500):
                some = wanted[start : start + 500]
                marks = ", ".join("?" for _ in some)
                rows = self._database.execute(f"SELECT id, state FROM jobs WHERE id IN ({marks})", some)
                found.update({row["id"]: row["state"] for row in rows})
        return {id_: found[id_] for id_ in wanted if id_ in found}

    def seconds_of(self, request: GenerationRequest) -> float | None:
        """What a clip of this model, size and number of steps took here, the median of the last ones."""
        wanted = ("model", "height", "width", "num_frames", "num_inference_steps", "attention")
        conditions = " AND ".join(f"json_extract(request, '$.{name}') = ?" for name in wanted)
        with _explained():
            rows = self._database.execute(
                f"SELECT files FROM jobs WHERE state = 'done' AND {conditions} ORDER BY finished DESC LIMIT 9",
                [getattr(request, name) for name in wanted],
            )
            seconds = sorted(file.seconds for row in rows for file in _files(row["files"]))
        return seconds[len(seconds) // 2] if seconds else None

    def receipts(self, job: str) -> list[dict[str, Any]]:
        """How the videos of a job were made."""
        with _explained():
            rows = self._database.execute("SELECT receipt FROM receipts WHERE job = ? ORDER BY video", (job,))
            return [json.loads(row["receipt"]) for row in rows]

    def events(self, job: str, after: int = 0) -> list[tuple[int, float, str, str]]:
        """A job's log: number, time, kind, text."""
        with _explained():
            rows = self._database.execute(
                "SELECT number, time, kind, text FROM events WHERE job = ? AND number > ? ORDER BY number", (job, after)
            )
            return [tuple(row) for row in rows]

    def tell(self, job: str, kind: EventKind, text: str) -> None:
        """Add a line to a job's log."""
        with self._transaction():
            self._tell(job, kind, text)

    def _tell(self, job: str, kind: EventKind, text: str) -> None:
        self._database.execute(
            "INSERT INTO events (job, time, kind, text) VALUES (?, ?, ?, ?)", (job, time.time(), kind, text[:20_000])
        )

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
def _explained() -> Iterator[None]:
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


def _to_row(job: Job) -> dict[str, Any]:
    row = {name: getattr(job, name) for name in (
        "id", "state", "control", "priority", "position", "batch", "source", "digest", "attempts", "worker", "created",
    )}  # fmt: skip
    return row | {
        "number": job.index, "request": job.request.model_dump_json(), "output": job.output.model_dump_json(),
        "files": _dump_files(job.files),
    }  # fmt: skip


def _to_job(row: sqlite3.Row) -> Job:
    values = dict(row)
    # Rows were validated when written, by a version that may have been stricter.
    return Job(
        request=GenerationRequest.model_validate_json(values.pop("request")),
        output=Output.model_validate_json(values.pop("output")), index=values.pop("number"),
        files=_files(values.pop("files")), **values,
    )  # fmt: skip


def _files(text: str) -> tuple[ResultFile, ...]:
    return tuple(ResultFile(**entry) for entry in json.loads(text))


def _dump_files(files: Iterable[ResultFile]) -> str:
    return json.dumps([asdict(file) for file in files])
