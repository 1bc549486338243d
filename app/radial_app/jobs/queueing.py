"""What users do with jobs that are in the queue or behind it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from typing import Any

from radial.errors import RequestError
from radial_app.jobs.job import FINISHED, Control, Job, State, changed_request
from radial_app.jobs.schema import Database, explained


class Queueing(Database):
    """Pause, resume, cancel, retry, edit, move, keep and forget jobs."""

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
            _check_readable(job)
            request = changed_request(job.request, changes)
            copies.append(Job(id="", request=request, output=job.output, index=job.index, batch=job.batch,
                              source=job.source, priority=job.priority, owner=job.owner))  # fmt: skip
        return self.add(copies)

    def edit(self, id_: str, **changes: Any) -> Job:
        """Other values of the request of a job that waits.

        Raises:
            RequestError: a value breaks a rule, or the job has begun.
        """
        job = self.get(id_)
        _check_readable(job)
        request = changed_request(job.request, changes)
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

    def step(self, id_: str, by: int, owner: str | None = None) -> None:
        """Move a waiting job so many places forward (-1) or back (1), among all jobs or among its owner's."""
        waiting = [row["id"] for row in self._waiting(owner)]
        if id_ in waiting:
            self.move(id_, waiting.index(id_) + 1 + by, owner)

    def move(self, id_: str, place: int, owner: str | None = None) -> None:
        """Move a waiting job to a place, from 1: of the whole queue, where its priority becomes that of its neighbours,
        or among its owner's jobs, which exchange their places and take none of anybody else's."""
        if owner is not None:
            self._move_among_own(id_, place, owner)
            return
        with self._transaction() as database:
            rows = [row for row in self._waiting() if row["id"] != id_]
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
        """Jobs that wait, all of them or one owner's, in the order of the queue."""
        with explained():
            return list(self._database.execute(
                "SELECT id, priority, position FROM jobs WHERE state = 'queued' AND owner = COALESCE(?, owner) "
                "ORDER BY priority DESC, position", (owner,),
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


def _check_readable(job: Job) -> None:
    if job.problem:
        raise RequestError(f"job {job.id}: {job.problem}; it can be cancelled and removed")
