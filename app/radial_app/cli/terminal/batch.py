"""A batch in the terminal: all of it, and each job that runs; and the workers that render it."""

from __future__ import annotations

import signal
import time

from rich import progress
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from radial_app.cli.jobs import clock, plain, where
from radial_app.jobs.job import FINISHED
from radial_app.jobs.store import JobStore
from radial_app.worker.overdue import Overdue
from radial_app.worker.pool import WorkerPool

stderr = Console(stderr=True)
_TICK = 0.2


class BatchView:
    """What the terminal shows of a batch: all of it, and each job that runs."""

    def __init__(self, store: JobStore, ids: list[str]) -> None:
        self._store, self._ids = store, ids
        columns = (
            progress.TextColumn("{task.description:14}"), progress.BarColumn(), progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(), progress.TextColumn("{task.fields[left]}"),
        )  # fmt: skip
        self._bar = progress.Progress(*columns, console=stderr)
        self._whole = self._bar.add_task("all", total=len(ids), left="")
        self._told: set[str] = set()
        self._waiting: set[tuple[str, str]] = set()
        self._began = time.monotonic()
        self._live = Live(console=stderr, refresh_per_second=5, transient=True)
        self.finished = 0

    def __enter__(self) -> BatchView:
        if stderr.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def look(self) -> bool:
        """Show how it stands; whether all jobs are finished."""
        states = self._store.states(self._ids)
        ended = [id_ for id_, state in states.items() if state in FINISHED or state == "paused"]
        for id_ in ended:
            if id_ in self._told:
                continue
            self._told.add(id_)
            job = self._store.get(id_)
            if job.state == "done":
                for file in job.files:
                    print(file.path, flush=True)
            else:
                self._live.console.print(
                    f"[red]{job.state}[/] {escape(plain(f'{job.source}: {job.error}'))}", highlight=False
                )
        for id_ in (id_ for id_, state in states.items() if state == "queued"):
            job = self._store.get(id_)
            if job.error and (id_, job.error) not in self._waiting:
                self._waiting.add((id_, job.error))
                self._live.console.print(
                    f"[yellow]waiting[/] {escape(plain(f'{job.source}: {job.error}'))}", highlight=False
                )
        self.finished = len(ended)
        spent = time.monotonic() - self._began
        left = f"{clock(spent / self.finished * (len(self._ids) - self.finished))} left" if self.finished else ""
        self._bar.update(self._whole, completed=self.finished, left=left)
        running = Table(box=None, show_header=False)
        for job in (self._store.get(id_) for id_, state in states.items() if state == "running"):
            running.add_row("", where(job), clock(job.eta), escape(plain(job.request.prompt[:60])))
        self._live.update(Group(self._bar, running))
        return self.finished >= len(states)


def end_by_signal() -> None:
    """Have SIGTERM, as a service manager sends it, end this command as Ctrl+C does: with its workers."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def show_batch(store: JobStore, ids: list[str], pool: WorkerPool) -> None:
    """Wait until jobs are finished, keeping workers alive meanwhile."""
    end_by_signal()
    overdue = Overdue(jobs=frozenset(ids))
    try:
        with BatchView(store, ids) as view:
            while not view.look():
                store.recover()
                overdue.look(store)
                pool.tend()
                time.sleep(_TICK)
        pool.kill()  # they have nothing to do
    finally:
        stop_pool(pool)


def stop_pool(pool: WorkerPool) -> None:
    """Have workers stop after their step; a second Ctrl+C ends them now, at the cost of the steps since the last
    snapshot."""
    try:
        if pool.alive:
            pool.stop(0.5)
        if pool.alive:
            stderr.print("workers stop after their step; Ctrl+C again ends them now", highlight=False)
            pool.stop(600)
    except KeyboardInterrupt:
        pass
    finally:
        pool.kill()
