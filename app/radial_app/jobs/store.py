"""The job store: one SQLite database that command line, studio, REST and workers share.

Everything that must not be lost is a committed row. A worker holds a file lock for as long as it lives, which the
operating system takes back however it dies; that, not a clock, says whether a running job still has its worker.
"""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from radial.errors import OutputError, RequestError
from radial.files import discard
from radial.input_files import named_files
from radial.request import GenerationRequest
from radial_app.jobs.folder import close_to_others, data_folder, keep_private
from radial_app.jobs.job import FINISHED, UNFINISHED, Control, Job, ResultFile, State, changed
from radial_app.jobs.locks import WorkerLocks
from radial_app.jobs.recovery import MAX_ATTEMPTS, after_death, after_failure
from radial_app.jobs.schema import (
    ALIKE,
    ALIKE_LATER,
    dump_files,
    explained,
    files_of,
    open_database,
    to_job,
    to_row,
    transaction,
)

LONGEST_WAIT = 60.0  # seconds that a job is deferred
_ORDER = ("finished IS NULL", "IFNULL(finished, 0)", "position")  # of pages: what has not ended is the latest
_LEAST_FREE = 16 << 20  # bytes of disk, without which not even rows can be kept
EventKind = Literal["state", "stage", "note", "error", "file"]


class JobStore:
    """Jobs in a data folder. Each thread and process opens its own.

    Args:
        patience: seconds to wait for a database that another program has locked.

    Raises:
        OutputError: the folder cannot be written, or the database is busy or broken.
    """

    def __init__(self, folder: Path | None = None, *, patience: float = 30.0) -> None:
        self.folder = data_folder(folder)
        try:
            keep_private(self.folder)
            for name in ("workers", "snapshots", "previews", "logs", "stories"):
                keep_private(self.folder / name)
            self._database = open_database(self.folder / "jobs.db", patience)
            for name in ("jobs.db", "jobs.db-wal", "jobs.db-shm"):
                close_to_others(self.folder / name)
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"cannot keep jobs in {self.folder}: {error}; name another folder with --data-dir"
            ) from error
        self.locks = WorkerLocks(self.folder / "workers")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return transaction(self._database)

    # What workers do

    def claim(
        self, worker: str, devices: tuple[str, ...] = (), only: str | None = None, batch: str | None = None,
        *, clips_alone: bool = False,
    ) -> Job | None:  # fmt: skip
        """Take the next job that waits, of all or of one batch, or a certain one. ``devices`` are those that the worker
        can render on; jobs that ask for another wait, and so do stories and what is to be finished, where it makes
        clips alone."""
        now = time.time()
        marks = ", ".join("?" for _ in devices)
        on_device = f"AND json_extract(request, '$.device') IN ({marks}) " if devices else ""
        of_clips = "AND story = '' AND finish = '' " if clips_alone else ""
        # Where the clock was set back, a date far ahead is none.
        query = (
            "SELECT * FROM jobs WHERE state = 'queued' AND (deferred_until <= ? OR deferred_until > ? OR id = ?) "
            f"AND id = COALESCE(?, id) AND batch = COALESCE(?, batch) {on_device}{of_clips}"
            "ORDER BY priority DESC, position"
        )
        values = (now, now + LONGEST_WAIT, only, only, batch, *devices)
        with explained():
            if self._database.execute(f"{query} LIMIT 1", values).fetchone() is None:
                return None  # most looks find nothing, and take no lock
        with self._transaction() as database:
            for job in map(to_job, database.execute(query, values)):
                if job.problem:  # for another version
                    continue
                return self._begin(job, worker)
        return None

    def claim_beside(self, worker: str, first: Job, others: Iterable[Job]) -> list[Job]:
        """Take jobs that wait to be rendered together with one that was claimed, all at once: as many of them as still
        wait as they were read. What they have in common is noted, so that after a kill they go on together."""
        jobs = []
        with self._transaction() as database:
            for job in others:
                row = database.execute("SELECT * FROM jobs WHERE id = ? AND state = 'queued'", (job.id,)).fetchone()
                now = to_job(row) if row else None
                if now is not None and (now.request, now.output, now.pack) == (job.request, job.output, job.pack):
                    jobs.append(self._begin(job, worker, " together with others"))
            if jobs:
                pack = first.pack or new_id()
                ids = [(pack, job.id) for job in (first, *jobs)]
                database.executemany("UPDATE jobs SET pack = ? WHERE id = ?", ids)
        return [self.get(job.id) for job in jobs]

    def _begin(self, job: Job, worker: str, how: str = "") -> Job:
        self._database.execute(
            "UPDATE jobs SET state = 'running', control = CASE control WHEN 'finish' THEN control ELSE '' END, "
            "worker = ?, attempts = attempts + 1, error = '', started = COALESCE(started, ?), stage = 'load', "
            "step = 0, steps = 0, eta = NULL, recall = NULL, attention_error = NULL WHERE id = ?",
            (worker, time.time(), job.id),
        )
        self._tell(job.id, "state", f"begun by {worker}, attempt {job.attempts + 1}{how}")
        return self.get(job.id)

    def control_of(self, job: str) -> Control:
        """What the user of a running job wants."""
        with explained():
            row = self._database.execute("SELECT control FROM jobs WHERE id = ?", (job,)).fetchone()
        return row["control"] if row else "cancel"  # a job that was removed is not to go on

    def progress(
        self, job: str, stage: str, step: int, steps: int, video: int, eta: float | None, recall: float | None = None,
        attention_error: float | None = None,
    ) -> None:  # fmt: skip
        """Say how far a running job is, and, where a step was looked at, how far its sparse attention is off."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET stage = ?, step = ?, steps = ?, video = ?, eta = ?, recall = ?, attention_error = ? "
                "WHERE id = ? AND state = 'running'",
                (stage, step, steps, video, eta, recall, attention_error, job),
            )

    def got_further(self, job: str) -> None:
        """A running job left a snapshot: what comes may fail as often as what was."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET attempts = 1 WHERE id = ? AND state = 'running'", (job,))

    def film_grew(self, job: str, pieces: int, film_bytes: int) -> None:
        """The film of a running job has so many pieces, in so many bytes: what comes may fail as often as what was."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET pieces = ?, film_bytes = ?, step = 0, attempts = 1 WHERE id = ? AND state = 'running'",
                (pieces, film_bytes, job),
            )

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

    def end(self, job: str, state: State, error: str = "", *, wait: float = 0.0, failed_attempt: bool = True) -> State:
        """Leave a running job: finished, paused, or queued again, in ``wait`` seconds at the earliest; paused or
        cancelled rather than queued, where its user asked for that, and failed where it failed too often.

        Returns:
            How it was left.
        """
        now = time.time()
        with self._transaction() as database:
            row = database.execute("SELECT control, attempts FROM jobs WHERE id = ?", (job,)).fetchone()
            if state == "queued" and row:
                state, error = after_failure(row["control"], row["attempts"], error, counts=failed_attempt)
            database.execute(
                "UPDATE jobs SET state = ?, control = '', worker = '', error = ?, eta = NULL, recall = NULL, "
                "attention_error = NULL, deferred_until = ?, "
                "finished = ?, attempts = MAX(0, attempts - ?), pack = CASE ? WHEN 'queued' THEN pack ELSE '' END "
                "WHERE id = ? AND state = 'running'",
                (state, error, now + min(wait, LONGEST_WAIT) if wait else 0, now if state in FINISHED else None,
                 0 if failed_attempt else 1, state, job),
            )  # fmt: skip
            self._tell(job, "error" if state == "failed" else "state", f"{state}: {error}" if error else state)
        return state

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
                        state, error = after_death(job, reasons.get(worker), max_attempts)
                        database.execute(
                            "UPDATE jobs SET state = ?, control = '', worker = '', error = ?, eta = NULL, "
                            "recall = NULL, attention_error = NULL, finished = ?, "
                            "pack = CASE ? WHEN 'queued' THEN pack ELSE '' END WHERE id = ?",
                            (state, error, time.time() if state in FINISHED else None, state, job.id),
                        )
                        self._tell(job.id, "error", error)
                        recovered.append(job)
        for job in recovered:
            if job.control == "cancel":
                self.forget_run(job.id)
                self.forget_film(job.id)
        return recovered

    # What users do

    def add(self, jobs: Iterable[Job]) -> list[Job]:
        """Put jobs at the end of the queue, all or none."""
        added = []
        with self._transaction() as database:
            last = database.execute("SELECT COALESCE(MAX(position), 0) FROM jobs").fetchone()[0]
            for place, job in enumerate(jobs, 1):
                job = replace(job, id=job.id or new_id(), position=last + place, created=time.time())
                row = to_row(job)
                names = ", ".join(row)
                database.execute(f"INSERT INTO jobs ({names}) VALUES ({', '.join(':' + name for name in row)})", row)
                added.append(job)
        return added

    def pause(self, ids: Iterable[str]) -> list[str]:
        """Hold jobs; running ones stop after the step they are at and keep what they have."""
        return self._control(ids, "pause", ("queued",), "paused")

    def resume(self, ids: Iterable[str]) -> list[str]:
        """Put paused jobs back into the queue, at their old place; those about to pause go on."""
        ids = list(ids)
        with self._transaction() as database:
            going_on = [
                id_ for id_ in ids
                if database.execute(
                    "UPDATE jobs SET control = '' WHERE id = ? AND state = 'running' AND control = 'pause'", (id_,)
                ).rowcount
            ]  # fmt: skip
        return going_on + self._move_state(ids, ("paused",), "queued")

    def cancel(self, ids: Iterable[str], *, keep: bool) -> list[str]:
        """Give jobs up; with ``keep``, running ones decode what they have, and films stay as far as they are: of those
        that wait a worker publishes what there is."""
        ids = list(ids)
        films = self._end_films(ids) if keep else []
        others = [id_ for id_ in ids if id_ not in films]
        asked = films + self._control(others, "finish" if keep else "cancel", ("queued", "paused"), "cancelled")
        if not keep:
            for id_, state in self.states(asked).items():
                if state == "cancelled":
                    self.forget_film(id_)
        return asked

    def _end_films(self, ids: Iterable[str]) -> list[str]:
        """Queue films that wait and have some pieces, to end with these: which ones are such."""
        films = []
        with self._transaction() as database:
            for id_ in ids:
                done = database.execute(
                    "UPDATE jobs SET state = 'queued', control = 'finish', attempts = 0, error = '', "
                    "deferred_until = 0 WHERE id = ? AND state IN ('queued', 'paused') AND story != '' AND pieces > 0",
                    (id_,),
                ).rowcount
                if done:
                    self._tell(id_, "state", "queued, to end with what there is")
                    films.append(id_)
        return films

    def retry(self, ids: Iterable[str]) -> list[str]:
        """Try failed or cancelled jobs again, from their last snapshot where there is one."""
        return self._move_state(ids, ("failed", "cancelled"), "queued")

    def duplicate(self, ids: Iterable[str], **changes: Any) -> list[Job]:
        """The same jobs again, at the end of the queue, with other values of the request."""
        copies = []
        for job in map(self.get, ids):
            _check_readable(job)
            request, story = changed(job, changes)
            copies.append(Job(id="", request=request, story=story, finish=job.finish, output=job.output,
                              index=job.index, batch=job.batch, source=job.source, priority=job.priority,
                              owner=job.owner))  # fmt: skip
        return self.add(copies)

    def edit(self, id_: str, **changes: Any) -> Job:
        """Other values of the request of a job that waits.

        Raises:
            RequestError: a value breaks a rule, or the job has begun.
        """
        job = self.get(id_)
        _check_readable(job)
        request, _ = changed(job, changes)
        if job.base:
            raise RequestError("the seed of a story that goes on stays: its first segments were made from it")
        with self._transaction() as database:
            done = database.execute(
                "UPDATE jobs SET request = ?, digest = '', attempts = 0, files = '[]', pieces = 0, film_bytes = 0, "
                "pack = '' WHERE id = ? AND state IN ('queued', 'paused')",
                (request.model_dump_json(), id_),
            )
            if not done.rowcount:
                state = self.get(id_).state
                raise RequestError(f"job {id_} is {state}: only jobs that wait can be edited; duplicate it")
            self._tell(id_, "state", f"edited: {', '.join(changes)}")
        return self.get(id_)

    def step(self, id_: str, by: int, owner: str | None = None) -> None:
        """Move a waiting job so many places forward (-1) or back (1), among all jobs or among its owner's."""
        waiting = [row["id"] for row in self._waiting(owner)]
        if id_ in waiting:
            self.move(id_, waiting.index(id_) + 1 + by, owner)

    def move(self, id_: str, place: int, owner: str | None = None) -> None:
        """Move a waiting job to a place, from 1: of the whole queue, where its priority becomes that of its neighbours,
        or among its owner's jobs, which exchange their places and take none of anybody else's. Others have no place,
        and stay as they are."""
        if owner is not None:
            self._move_among_own(id_, place, owner)
            return
        with self._transaction() as database:
            waiting = self._waiting()
            rows = [row for row in waiting if row["id"] != id_]
            if len(rows) == len(waiting):
                return
            index = min(max(place - 1, 0), len(rows))
            before, after = rows[index - 1] if index else None, rows[index] if index < len(rows) else None
            if before is not None and after is not None and before["priority"] == after["priority"]:
                priority, position = after["priority"], (before["position"] + after["position"]) / 2
                if not before["position"] < position < after["position"]:  # no number is left between them
                    database.execute(
                        "UPDATE jobs SET position = position + 1 WHERE position >= ?", (after["position"],)
                    )
                    position = after["position"]
            elif after is not None:
                priority, position = after["priority"], after["position"] - 1
            elif before is not None:
                priority, position = before["priority"], before["position"] + 1
            else:
                return
            database.execute("UPDATE jobs SET priority = ?, position = ? WHERE id = ?", (priority, position, id_))

    def _waiting(self, owner: str | None = None) -> list[sqlite3.Row]:
        """Jobs that wait or are paused, all of them or one owner's, in the order in which they are seen."""
        with explained():
            return list(self._database.execute(
                "SELECT id, priority, position FROM jobs WHERE state IN ('queued', 'paused') "
                "AND owner = COALESCE(?, owner) ORDER BY priority DESC, position", (owner,),
            ))  # fmt: skip

    def _move_among_own(self, id_: str, place: int, owner: str) -> None:
        with self._transaction() as database:
            rows = self._waiting(owner)
            order = [row["id"] for row in rows if row["id"] != id_]
            if len(order) == len(rows):
                return
            order.insert(min(max(place - 1, 0), len(order)), id_)
            for own, slot in zip(order, rows, strict=True):
                database.execute(
                    "UPDATE jobs SET priority = ?, position = ? WHERE id = ?", (slot["priority"], slot["position"], own)
                )

    def disown(self, owner: str) -> None:
        """Leave an account's jobs to the admins, so that nobody of the same name has them later."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET owner = '' WHERE owner = ?", (owner,))

    def prioritise(self, ids: Iterable[str], priority: int) -> None:
        """Jobs of higher priority go first."""
        with self._transaction() as database:
            for id_ in ids:
                database.execute("UPDATE jobs SET priority = ? WHERE id = ?", (priority, id_))

    def favour(self, id_: str, favourite: bool) -> None:
        """Mark a job as one of the best, or no longer."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET favourite = ? WHERE id = ?", (int(favourite), id_))

    def remove(self, ids: Iterable[str], *, keep_films: bool = False) -> list[str]:
        """Forget jobs that do not run, and their snapshots; their videos stay, and what films go on from where that is
        kept."""
        removed = []
        with self._transaction() as database:
            for id_ in ids:
                done = database.execute("DELETE FROM jobs WHERE id = ? AND state != 'running'", (id_,))
                removed += [id_] if done.rowcount else []
        for id_ in removed:
            self.forget_run(id_)
            if not keep_films:
                self.forget_film(id_)
        return removed

    def rows_of(self, id_: str) -> dict[str, Any]:
        """What is kept of a job, but for its log, with which :meth:`put_back` has it again."""
        with explained():
            job = self._database.execute("SELECT * FROM jobs WHERE id = ?", (id_,)).fetchone()
        return {"job": dict(job), "receipts": self.receipts(id_)}

    def put_back(self, rows: Mapping[str, Any]) -> None:
        """Have a job again that was removed, as it was.

        Raises:
            RequestError: there is one of its id, or the row is of another version.
        """
        try:
            row = rows["job"]
            with self._transaction() as database:
                names = ", ".join(row)
                marks = ", ".join(f":{name}" for name in row)
                database.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", dict(row))
                database.executemany(
                    "INSERT OR IGNORE INTO results (job, video, path) VALUES (?, ?, ?)",
                    [(row["id"], number, file.path) for number, file in enumerate(files_of(row["files"])) if file.path],
                )
                database.executemany(
                    "INSERT INTO receipts (job, video, receipt) VALUES (?, ?, ?)",
                    [(row["id"], number, json.dumps(one)) for number, one in enumerate(rows["receipts"])],
                )
        except OutputError as error:
            raise RequestError(f"this video cannot be brought back: {error}") from error

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
                        f"UPDATE jobs SET state = ?, control = '', finished = ? WHERE id = ? AND state IN ({marks})",
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
        with explained():
            rows = self._database.execute(
                "SELECT request, finish FROM jobs WHERE state IN ('queued', 'running', 'paused', 'failed')"
            )
            return {path for row in rows for path in _needed(*row)}

    def goes_on_from(self, paths: Iterable[str], film: str = "") -> str | None:
        """A job that has not ended and needs one of these files, or the film of a job."""
        wanted = set(paths)
        with explained():
            row = self._database.execute(
                "SELECT id FROM jobs WHERE state IN ('queued', 'running', 'paused') AND base = ? LIMIT 1",
                (str(self.film_folder(film)),),
            ).fetchone()
            if film and row:
                return str(row["id"])
            rows = self._database.execute(
                "SELECT id, request, finish FROM jobs WHERE state IN ('queued', 'running', 'paused')"
            )
            needed = ((id_, path) for id_, request, finish in rows for path in _needed(request, finish))
            return next((id_ for id_, path in needed if path in wanted), None) if wanted else None

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

    def find(
        self, states: Iterable[State] = (), batch: str | None = None, limit: int | None = None,
        owner: str | None = None,
    ) -> list[Job]:  # fmt: skip
        """Jobs in the order of the queue: running, waiting, then finished ones, the latest first."""
        states = tuple(states) or UNFINISHED + FINISHED
        with explained():
            rows = self._database.execute(
                f"SELECT * FROM jobs WHERE state IN ({', '.join('?' for _ in states)}) "
                "AND batch = COALESCE(?, batch) AND owner = COALESCE(?, owner) ORDER BY "
                "CASE state WHEN 'running' THEN 0 WHEN 'queued' THEN 1 WHEN 'paused' THEN 1 ELSE 2 END, "
                "CASE WHEN finished IS NULL THEN 0 ELSE -finished END, priority DESC, position LIMIT ?",
                (*states, batch, owner, -1 if limit is None else limit),
            )
            return [to_job(row) for row in rows]

    def page(
        self, states: Iterable[State], *, owner: str | None = None, favourites: bool = False,
        with_files: bool = False, stories: bool = False, text: str = "",
        limit: int = 24, offset: int = 0, after: str | None = None, oldest_first: bool = False,
    ) -> list[Job]:  # fmt: skip
        """Jobs the latest first, those that have not ended before the others.

        A page of all, of one owner, of favourites, of those with videos, of stories, of those whose prompt has a
        ``text``; from behind a job on, where one is named, whatever has ended meanwhile.
        """
        states = tuple(states)
        place, direction, beyond = ", ".join(_ORDER), *(("ASC", ">") if oldest_first else ("DESC", "<"))
        pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        with explained():
            rows = self._database.execute(
                f"SELECT * FROM jobs WHERE state IN ({', '.join('?' for _ in states)}) AND owner = COALESCE(?, owner) "
                "AND favourite >= ? AND json_array_length(files) >= ? AND (story != '') >= ? "
                "AND (? = '' OR json_extract(request, '$.prompt') LIKE ? ESCAPE '\\') "
                f"AND (? IS NULL OR ({place}) {beyond} (SELECT {place} FROM jobs WHERE id = ?)) "
                f"ORDER BY {', '.join(f'{part} {direction}' for part in _ORDER)} LIMIT ? OFFSET ?",
                (
                    *states,
                    owner,
                    int(favourites),
                    int(with_files),
                    int(stories),
                    text,
                    pattern,
                    after,
                    after,
                    limit,
                    offset,
                ),
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
        """What a clip of this model, size, steps, guided steps and cache took here, the median of the last ones."""
        conditions = " AND ".join(
            [f"json_extract(request, '$.{name}') = ?" for name in ALIKE]
            + [f"ifnull(json_extract(request, '$.{name}'), ?) = ?" for name in ALIKE_LATER]
        )
        values = [getattr(request, name) for name in ALIKE]
        for name, absent in ALIKE_LATER.items():
            values += [absent, absent if (value := getattr(request, name)) is None else value]
        with explained():
            rows = self._database.execute(
                "SELECT files, json_extract(request, '$.num_videos') AS rendered FROM jobs WHERE state = 'done' "
                "AND story = '' AND (finish = '' OR json_array_length(finish, '$.clips') = 0) "
                f"AND {conditions} ORDER BY finished DESC LIMIT 9",
                values,
            )
            seconds = sorted(file.seconds for row in rows for file in files_of(row["files"])[: row["rendered"]])
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

    # The log of a job, and its files

    def tell(self, job: str, kind: EventKind, text: str) -> None:
        """Add a line to a job's log."""
        with self._transaction():
            self._tell(job, kind, text)

    def _tell(self, job: str, kind: EventKind, text: str) -> None:
        self._database.execute(
            "INSERT INTO events (job, time, kind, text) VALUES (?, ?, ?, ?)", (job, time.time(), kind, text[:20_000])
        )

    def forget_run(self, job: str) -> None:
        """Remove what only a job that goes on needs."""
        kept = self.snapshot_path(job)
        for path in (kept, snapshot_before(kept), self.preview_path(job)):
            with contextlib.suppress(OSError):
                path.unlink()

    def forget_film(self, job: str) -> None:
        """Remove the growing film of a job, and what it goes on from."""
        if not self.film_folder(job).exists():
            return
        discard(self.film_folder(job))
        with self._transaction() as database:
            database.execute("UPDATE jobs SET pieces = 0, film_bytes = 0 WHERE id = ?", (job,))

    def film_folder(self, job: str) -> Path:
        """Where the film of a job grows, and what it goes on from."""
        return self.folder / "stories" / job

    def finishing_folder(self, job: str, index: int) -> Path:
        """Where a job's video grows that is finished."""
        return self.film_folder(job) / f"finished-{index}"

    def snapshot_path(self, job: str) -> Path:
        """Where a job keeps how far it is."""
        return self.folder / "snapshots" / f"{job}.safetensors"

    def preview_path(self, job: str) -> Path:
        """Where a running job shows what it is at, now and then."""
        return self.folder / "previews" / f"{job}.webp"


def snapshot_before(path: Path) -> Path:
    """Where the snapshot before the one at a path is kept, of jobs that are rendered together."""
    return path.with_suffix(f".before{path.suffix}")


def new_id() -> str:
    """A short id; later ones sort after earlier ones."""
    return f"{int(time.time()):x}{secrets.token_hex(6)}"


def _needed(request: str, finish: str) -> set[str]:
    """The files that a row's job starts from."""
    files = {path for _, path in named_files(json.loads(request))}
    if finish:
        found = json.loads(finish)
        files |= {*found["clips"], *filter(None, (found["what"]["upscaler"], found["what"]["sound"]))}
    return files


def _check_readable(job: Job) -> None:
    if job.problem:
        raise RequestError(f"job {job.id}: {job.problem}; it can be cancelled and removed")
