"""Jobs whose clips are made together: which ones are, and how each stays a job of its own.

Each job has an attempt of its own in a thread of its own, with its own progress, notes, snapshots, wishes and end. What
must be the same for all is decided once a step: whether it is time for snapshots, and what each user wishes. Every job
keeps its last two snapshots, so that after a kill in the middle of keeping them all go on from the same step, and
compute what they would have computed.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radial.errors import Lost, ModelError, RadialError, RequestError
from radial.files import discard, publish
from radial.input_files import named_files
from radial.models.find import find_model
from radial_app.jobs.job import Job, load_key
from radial_app.jobs.store import JobStore, snapshot_before
from radial_app.worker.attempt import Attempt, wish_of
from radial_app.worker.model_cache import ModelCache
from radial_app.worker.rendering import (
    BESIDE,
    FilmListener,
    FilmPlace,
    FinishListener,
    FinishTask,
    Listener,
    LocalRenderer,
    Rendered,
    Steering,
    Wish,
    finished,
)

if TYPE_CHECKING:
    from radial.generation.acceleration.together import Together
    from radial.generation.resume import Step
    from radial.generation.snapshot import Snapshot
    from radial.loading.load import LoadedModel
    from radial.request import GenerationRequest
    from radial.stories.request import StoryRequest
    from radial.video.film import Film

log = logging.getLogger("radial.worker")


def find_mates(store: JobStore, first: Job, waiting: Sequence[Job], device: str) -> list[Job]:
    """The jobs that wait and are to be rendered on a device together with one that was claimed; none where it is to be
    alone.

    Those that were together when their worker died are so again. Else it is the next ones in the queue, so that no job
    is overtaken, of one owner, as many as pays and fits, and no more than this worker's share of them.
    """
    from radial.generation.acceleration.pack_rates import clips_together
    from radial.loading.memory_check import count_fitting

    if first.pack:
        again = [job for job in waiting if job.pack == first.pack]
        return [job for job in again if _are_alike(store, first, job)]
    spec, name = find_model(first.request.model), _device_name(device)
    chosen = [first]
    for job in waiting:
        longest = max(one.request.grid(spec).tokens for one in chosen)
        if len(chosen) >= clips_together(spec.name, longest, name):
            break
        if job.pack or job.owner != first.owner or not _are_alike(store, first, job):
            break
        if len(chosen) >= clips_together(spec.name, job.request.grid(spec).tokens, name):
            break
        chosen.append(job)
    share = -(-len(chosen) // max(1, len(store.locks.living())))
    chosen = chosen[:share]
    if len(chosen) == 1:
        return []
    return chosen[1 : count_fitting([job.request.model_copy(update={"device": device}) for job in chosen])]


def render_together(
    store: JobStore, jobs: Sequence[Job], models: ModelCache, snapshot_seconds: float, stop: threading.Event,
    tell: Callable[[Job, Any], None],
) -> Exception | None:  # fmt: skip
    """Render jobs that were claimed, each of which may share calls with the first, and leave each finished, paused or
    queued.

    Returns:
        The worst that one of them ended with; see :meth:`Attempt.run`.

    Raises:
        KeyboardInterrupt: the user stopped this process; they are paused.
        OutputError: a job could not be settled, as where its queue cannot be written.
    """
    from radial.generation.acceleration.together import Together

    jobs = sorted(jobs, key=lambda job: job.id)  # the same after a kill, wherever they were moved in the queue
    ends: list[Exception | None] = [None] * len(jobs)
    not_settled: list[BaseException] = []
    try:
        shared_run = Together([job.request for job in jobs])
    except RadialError as error:  # of a file that is gone, say: each tells of it
        log.warning("jobs are rendered one by one after all: %s", error)
        alone = LocalRenderer(models, snapshot_seconds)
        return _worst([Attempt(store, job, alone, stop=stop, tell=tell).run() for job in jobs])
    with shared_run as together:
        shared = _Shared(store, jobs, together, models, snapshot_seconds, stop)

        def attempt(number: int) -> None:
            try:
                with together.taking_turns(number), JobStore(store.folder) as own:  # a thread's own
                    seat = _Seat(shared, number, own)
                    ends[number] = Attempt(own, jobs[number], seat, stop=stop, tell=tell).run()
            except BaseException as error:
                not_settled.append(error)

        together.run(attempt)
    if not_settled:
        raise not_settled[0]
    return _worst(ends)


def _worst(ends: Sequence[Exception | None]) -> Exception | None:
    errors = [error for error in ends if error is not None]
    return max(errors, key=lambda error: (isinstance(error, Lost), not isinstance(error, RadialError)), default=None)


def _may_share(store: JobStore, job: Job) -> bool:
    """Whether a job's clip may be made together with others. What killed a worker twice, or failed, is alone."""
    from radial.generation.acceleration.together import why_alone

    request, spec = job.request, find_model(job.request.model)
    begun = job.attempts - (job.state == "running")
    if begun > (1 if job.pack else 0) or (not job.pack and store.snapshot_path(job.id).exists()):
        return False
    of_one_clip = job.story is None and job.finish is None and request.num_videos == 1
    is_fresh = not (job.files or job.problem or job.control)
    is_plain = not list(named_files(request.model_dump())) and (
        request.enhance is None or request.original_prompt is not None
    )
    whole = request.memory in ("auto", "full") and not spec.has_two_transformers
    # What other kinds of attention find out of a clip would be found of the whole pack.
    fixed = request.attention in ("dense", "radial")
    return of_one_clip and is_fresh and is_plain and whole and fixed and why_alone(request) is None


def _are_alike(store: JobStore, one: Job, other: Job) -> bool:
    """Whether two jobs may be made together."""
    from radial.generation.acceleration.together import why_apart

    if load_key(one.request) != load_key(other.request) or not (_may_share(store, one) and _may_share(store, other)):
        return False
    spec = find_model(one.request.model)
    # As many calls a step, or they would be at different steps.
    guided = one.request.is_guided(spec) == other.request.is_guided(spec)
    return guided and why_apart(one.request, other.request) is None


def _device_name(device: str) -> str:
    import torch

    from radial.loading.devices import find_device

    found = find_device(device)
    return found if found == "cpu" else torch.cuda.get_device_name(torch.device(found))


class _Shared:
    """What the attempts of a pack have in common; one of them is in here at a time."""

    def __init__(
        self, store: JobStore, jobs: Sequence[Job], together: Together, models: ModelCache, snapshot_seconds: float,
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self.jobs, self.together, self.models, self.stop = jobs, together, models, stop
        self.snapshot_seconds = snapshot_seconds
        self.alone = LocalRenderer(models, snapshot_seconds)
        self.model: LoadedModel | None = None
        self.snapshots: list[Snapshot | None] = []
        self.why_not = ""
        self._paths = [store.snapshot_path(job.id) for job in jobs]
        self._kept = time.monotonic()
        self._members = frozenset(range(len(jobs)))
        self._decided: tuple[int, dict[int, Wish], bool] = (-1, {}, False)

    def open(self, request: GenerationRequest, steering: Steering) -> LoadedModel:
        """The model that all share, loaded by the first that comes; where ``why_not`` says so, each is to be alone."""
        if self.model is None:
            self.model = self.models.get(request, steering.on_load, steering.on_download)
            try:
                self.together.use(self.model)
                self.snapshots = _take_up(self._paths, self.together.requests, self.model)
            except (RequestError, ModelError) as error:
                self.why_not = str(error)
        return self.model

    def decide(self, step: Step, store: JobStore) -> tuple[dict[int, Wish], bool]:
        """After a step: what each user wishes, and whether it is time for snapshots; the same for all of them."""
        if self._decided[0] == step.step:
            return self._decided[1:]
        members = self.together.going_on
        wishes = {number: wish_of(store, self.jobs[number].id, self.stop) for number in members}
        time_is_up = time.monotonic() - self._kept >= self.snapshot_seconds
        # Where one leaves, the others' next steps are computed without it, and so they must be after a kill.
        is_due = time_is_up or step.step == step.steps or any(wishes.values()) or members != self._members
        self._members = members
        if is_due:
            self._kept = time.monotonic()
        self._decided = step.step, wishes, is_due
        return wishes, is_due

    def beside(self, number: int) -> list[str]:
        """The jobs whose clips are made together with a job's."""
        return [job.id for other, job in enumerate(self.jobs) if other != number]


class _Seat:
    """What an attempt of a pack renders by."""

    def __init__(self, shared: _Shared, number: int, store: JobStore) -> None:
        self._shared, self._number, self._store = shared, number, store

    def render_film(self, story: StoryRequest, place: FilmPlace, listener: FilmListener) -> Film:
        """Films are rendered alone."""
        raise RequestError("a story is rendered by itself")

    def finish(self, task: FinishTask, listener: FinishListener) -> Film:
        """Clips are finished alone."""
        raise RequestError("clips are finished by themselves")

    def render(self, request: GenerationRequest, snapshot: Path, listener: Listener) -> Rendered:
        """Render one video; see :class:`~radial_app.worker.rendering.Renderer`."""
        from radial.generation.watch import Event

        shared, number = self._shared, self._number
        steering = _SharedSteering(listener, shared, number, self._store)
        model = shared.open(request, steering)
        if shared.why_not:
            listener.on_event(Event("load", note=f"made by itself: {shared.why_not}"))
            return shared.alone.render(request, snapshot, listener)
        steering.pipe, taken_up = model.pipe, shared.snapshots[number]
        told = f"made together with {len(shared.jobs) - 1} others"
        if taken_up is not None:
            told += f"; goes on from step {taken_up.step} of {taken_up.steps}"
        listener.on_event(Event("load", note=told))
        video = shared.together.generate(number, steering.on_event, steering.on_step, taken_up)
        return replace(finished(video, steering, taken_up, shared.beside(number)), together=len(shared.jobs))


class _SharedSteering(Steering):
    """As :class:`Steering`, by what is decided for all."""

    def __init__(self, listener: Listener, shared: _Shared, number: int, store: JobStore) -> None:
        super().__init__(listener, shared.snapshot_seconds)
        self._shared, self._number, self._store = shared, number, store

    def on_step(self, step: Step) -> Any:
        """Between two steps: where snapshots are kept, all have theirs before one goes on, and may end."""
        _, is_due = self._shared.decide(step, self._store)
        if not is_due:
            return super().on_step(step)
        try:
            return super().on_step(step)
        finally:
            self._shared.together.wait_for_others(self._number)

    def decide(self, step: Step) -> tuple[Wish, bool]:
        wishes, is_due = self._shared.decide(step, self._store)
        return wishes.get(self._number, ""), is_due

    def keep(self, snapshot: Snapshot) -> None:
        named = replace(snapshot, parts={**snapshot.parts, BESIDE: self._shared.beside(self._number)})

        def write(path: Path) -> None:
            if path.exists():
                publish(snapshot_before(path), lambda partial: shutil.copyfile(path, partial), overwrite=True)
            named.write(path)

        self._listener.keep(write)


def _take_up(paths: Sequence[Path], requests: Sequence[GenerationRequest], model: LoadedModel) -> list[Snapshot | None]:
    """The snapshots that jobs go on from: of the last step that all of them have, be it the beginning. What is of later
    steps is removed, or it would be taken for another's partner. Where they have none in common, each its last."""
    from radial.generation.pipeline import describe_run
    from radial.generation.snapshot import read_snapshot

    kept: list[list[Snapshot]] = []
    for path, request in zip(paths, requests, strict=True):
        about = describe_run(request, model)
        found = [read_snapshot(file, about) for file in (path, snapshot_before(path))]
        kept.append([one for one in found if one is not None])
    steps = [{one.step for one in own} | ({0} if len(own) < 2 else set()) for own in kept]
    common = set[int].intersection(*steps)
    if not common:
        return [own[0] if own else None for own in kept]
    step = max(common)
    for path, own in zip(paths, kept, strict=True):
        if own and own[0].step != step:
            if own[-1].step == step:
                snapshot_before(path).replace(path)
            else:
                discard(path)
    return [next((one for one in own if one.step == step), None) for own in kept]
