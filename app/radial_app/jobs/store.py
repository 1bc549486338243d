"""The job store: one SQLite database that command line, studio, REST and workers share.

Everything that must not be lost is a committed row. A worker holds a file lock for as long as it lives, which the
operating system takes back however it dies; that, not a clock, says whether a running job still has its worker.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from radial.errors import OutputError
from radial.request import GenerationRequest
from radial_app.jobs.job import FINISHED, UNFINISHED, Control, Job, ResultFile, State
from radial_app.jobs.queueing import Queueing
from radial_app.jobs.schema import ALIKE, EventKind, dump_files, explained, files_of, to_job

MAX_ATTEMPTS = 5  # of a job that gets no further
LONGEST_WAIT = 60.0  # seconds that a job is deferred
_LEAST_FREE = 16 << 20  # bytes of disk, without which not even rows can be kept
_WANTED: dict[str, State] = {"pause": "paused", "cancel": "cancelled", "finish": "cancelled"}


class JobStore(Queueing):
    """Jobs in a data folder. Each thread and process opens its own.

    Raises:
        OutputError: the folder cannot be written, or the database is busy or broken.
    """

    # Writing jobs

    def claim(
        self, worker: str, devices: tuple[str, ...] = (), only: str | None = None, batch: str | None = None
    ) -> Job | None:
        """Take the next job that waits, of all or of one batch, or a certain one. ``devices`` are those that the worker
        can render on; jobs that ask for another wait."""
        now = time.time()
        marks = ", ".join("?" for _ in devices)
        on_device = f"AND json_extract(request, '$.device') IN ({marks}) " if devices else ""
        # Where the clock was set back, a date far ahead is none.
        query = (
            "SELECT * FROM jobs WHERE state = 'queued' AND (deferred_until <= ? OR deferred_until > ? OR id = ?) "
            f"AND id = COALESCE(?, id) AND batch = COALESCE(?, batch) {on_device}ORDER BY priority DESC, position"
        )
        values = (now, now + LONGEST_WAIT, only, only, batch, *devices)
        with explained():
            if self._database.execute(f"{query} LIMIT 1", values).fetchone() is None:
                return None  # most looks find nothing, and take no lock
        with self._transaction() as database:
            for job in map(to_job, database.execute(query, values)):
                if job.problem:  # for another version
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
        with explained():
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
            files = list(files_of(database.execute("SELECT files FROM jobs WHERE id = ?", (job,)).fetchone()["files"]))
            files[index:] = [file]
            database.execute("UPDATE jobs SET files = ? WHERE id = ?", (dump_files(files), job))
            database.execute("DELETE FROM results WHERE job = ? AND video >= ?", (job, index))
            database.execute("INSERT INTO results (job, video, path) VALUES (?, ?, ?)", (job, index, file.path))
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
                (state, error, now + min(wait, LONGEST_WAIT) if wait else 0, now if state in FINISHED else None,
                 0 if failed_attempt else 1, job),
            )  # fmt: skip
            self._tell(job, "error" if state == "failed" else "state", f"{state}: {error}" if error else state)

    def recover(self, max_attempts: int = MAX_ATTEMPTS, reasons: Mapping[str, str] = MappingProxyType({})) -> list[Job]:
        """Put jobs whose worker is dead back into the queue, or leave them as their users asked; fail those that killed
        it too often.

        Args:
            reasons: why workers are dead, where that is known.
        """
        with explained():
            workers = [r["worker"] for r in self._database.execute("SELECT DISTINCT worker FROM jobs "
                                                                  "WHERE state = 'running'")]  # fmt: skip
        recovered = []
        for worker in workers:
            with self.locks.if_dead(worker) as dead:
                if not dead:
                    continue
                with self._transaction() as database:
                    rows = database.execute("SELECT * FROM jobs WHERE state = 'running' AND worker = ?", (worker,))
                    for job in [to_job(row) for row in rows]:
                        where = f"in stage {job.stage}" + (f", step {job.step} of {job.steps}" if job.step else "")
                        poison = job.attempts >= max_attempts and not job.control
                        state: State = "failed" if poison else _WANTED.get(job.control, "queued")
                        error = f"its worker died {where}" + (f", {job.attempts} times in a row" if poison else "")
                        error = f"{reasons[worker]} ({where.strip()})" if worker in reasons else error
                        database.execute(
                            "UPDATE jobs SET state = ?, control = '', worker = '', error = ?, eta = NULL, finished = ? "
                            "WHERE id = ?",
                            (state, error, time.time() if state in FINISHED else None, job.id),
                        )
                        self._tell(job.id, "error", error)
                        recovered.append(job)
        for job in recovered:
            if job.control == "cancel":
                self.forget_run(job.id)
        return recovered

    # Reading

    def find(
        self, states: Iterable[State] = (), batch: str | None = None, limit: int | None = None,
        owner: str | None = None,
    ) -> list[Job]:  # fmt: skip
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
        if owner is not None:
            conditions.append("owner = ?")
            values.append(owner)
        with explained():
            rows = self._database.execute(
                f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY "
                "CASE state WHEN 'running' THEN 0 WHEN 'queued' THEN 1 WHEN 'paused' THEN 1 ELSE 2 END, "
                "CASE WHEN finished IS NULL THEN 0 ELSE -finished END, priority DESC, position LIMIT ?",
                (*values, -1 if limit is None else limit),
            )
            return [to_job(row) for row in rows]

    def page(
        self, states: Iterable[State], *, owner: str | None = None, favourites: bool = False,
        with_files: bool = False, text: str = "",
        limit: int = 24, offset: int = 0,
    ) -> list[Job]:  # fmt: skip
        """Jobs the latest first, those that have not ended before the others.

        A page of all, of one owner, of favourites, of those with videos, of those whose prompt has a ``text``.
        """
        states = tuple(states)
        pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        with explained():
            rows = self._database.execute(
                f"SELECT * FROM jobs WHERE state IN ({', '.join('?' for _ in states)}) AND owner = COALESCE(?, owner) "
                "AND favourite >= ? AND json_array_length(files) >= ? "
                "AND (? = '' OR json_extract(request, '$.prompt') LIKE ? ESCAPE '\\') "
                "ORDER BY finished IS NULL DESC, finished DESC, position DESC LIMIT ? OFFSET ?",
                (*states, owner, int(favourites), int(with_files), text, pattern, limit, offset),
            )
            return [to_job(row) for row in rows]

    def version(self) -> tuple[int, int]:
        """Differs when anybody has changed the jobs since."""
        with explained():
            return (self._database.execute("PRAGMA data_version").fetchone()[0], self._database.total_changes)

    def counts(self, owner: str | None = None) -> dict[str, int]:
        """Jobs by state, of all or of one owner."""
        with explained():
            rows = self._database.execute(
                "SELECT state, COUNT(*) AS count FROM jobs WHERE owner = COALESCE(?, owner) GROUP BY state", (owner,)
            )
            return {row["state"]: row["count"] for row in rows}

    def totals(self) -> tuple[int, float]:
        """Videos finished, and the seconds they took."""
        with explained():
            row = self._database.execute(
                "SELECT COUNT(*), COALESCE(SUM(json_extract(value, '$.seconds')), 0) FROM jobs, json_each(jobs.files) "
                "WHERE json_extract(value, '$.done')"
            ).fetchone()
        return int(row[0]), float(row[1])

    def finished_with(self, digest: str) -> Job | None:
        """A finished job of this digest whose videos are all still there."""
        with explained():
            rows = self._database.execute("SELECT * FROM jobs WHERE digest = ? AND state = 'done'", (digest,))
            for job in map(to_job, rows):
                if job.files and all(Path(file.path).exists() and not file.partial for file in job.files):
                    return job
        return None

    def begun_with(self, digest: str) -> Job | None:
        """An unfinished or failed job of this digest, the latest."""
        with explained():
            row = self._database.execute(
                "SELECT * FROM jobs WHERE digest = ? AND state != 'done' ORDER BY position DESC LIMIT 1", (digest,)
            ).fetchone()
        return to_job(row) if row else None

    def assign(self, ids: Iterable[str], batch: str) -> None:
        """Make jobs part of another batch."""
        with self._transaction() as database:
            database.executemany("UPDATE jobs SET batch = ? WHERE id = ?", [(batch, id_) for id_ in ids])

    def seconds_of(self, request: GenerationRequest) -> float | None:
        """What a clip of this model, size and number of steps took here, the median of the last ones."""
        conditions = " AND ".join(f"json_extract(request, '$.{name}') = ?" for name in ALIKE)
        with explained():
            rows = self._database.execute(
                f"SELECT files FROM jobs WHERE state = 'done' AND {conditions} ORDER BY finished DESC LIMIT 9",
                [getattr(request, name) for name in ALIKE],
            )
            seconds = sorted(file.seconds for row in rows for file in files_of(row["files"]))
        return seconds[len(seconds) // 2] if seconds else None

    def receipts(self, job: str) -> list[dict[str, Any]]:
        """How the videos of a job were made."""
        with explained():
            rows = self._database.execute("SELECT receipt FROM receipts WHERE job = ? ORDER BY video", (job,))
            return [json.loads(row["receipt"]) for row in rows]

    def asked(self) -> list[tuple[str, str, Control, str, int]]:
        """Running jobs whose users want something else of them: id, worker, what, and how far they are: stage, step."""
        with explained():
            rows = self._database.execute(
                "SELECT id, worker, control, stage, step FROM jobs WHERE state = 'running' AND control != ''"
            )
            return [tuple(row) for row in rows]

    def check_writable(self) -> None:
        """Raise where jobs cannot be kept at present.

        Raises:
            OutputError: the disk is full, or another program has locked the database.
        """
        if shutil.disk_usage(self.folder).free < _LEAST_FREE:
            problem = OutputError(f"the disk of {self.folder} is full")
            problem.errno = errno.ENOSPC
            raise problem
        with self._transaction():
            pass

    def unreadable(self) -> list[str]:
        """Jobs that have not ended and that this version cannot read."""
        return [job.id for job in self.find(UNFINISHED, limit=1000) if job.problem]

    def events(self, job: str, after: int = 0) -> list[tuple[int, float, str, str]]:
        """A job's log: number, time, kind, text."""
        with explained():
            rows = self._database.execute(
                "SELECT number, time, kind, text FROM events WHERE job = ? AND number > ? ORDER BY number", (job, after)
            )
            return [tuple(row) for row in rows]

    def tell(self, job: str, kind: EventKind, text: str) -> None:
        """Add a line to a job's log."""
        with self._transaction():
            self._tell(job, kind, text)
