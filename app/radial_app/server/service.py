"""What one visitor does with the queue: the seam between HTTP, whoever speaks it, and the job store.

The REST interface, the studio and the tools for agents all go through here, so that nobody sees or touches what is not
theirs, and files are only ever those that jobs and uploads name.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from radial.advice import advise
from radial.errors import OutputError, RadialError, RequestError
from radial.files import publish
from radial.loading.devices import find_device
from radial.loading.memory_check import check_all_fit, find_lack
from radial.models.checkpoint import checkpoint_folder
from radial.models.find import find_model
from radial.models.hub.download import cached_folder
from radial.request import GenerationRequest
from radial.video.reader import decode_frames
from radial_app.jobs.estimates import estimate
from radial_app.jobs.finishing import finishing_after
from radial_app.jobs.folder import keep_private
from radial_app.jobs.job import UNFINISHED, Job, Output, changed_request
from radial_app.jobs.lists.job_files import JobFileError, read_jobs
from radial_app.jobs.results import proxy_path
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Visitor
from radial_app.server.finishing.bounds import FinishBody, check_after, read_order
from radial_app.server.stories.views import check_bounds
from radial_app.server.trash import Trash, move_to_trash
from radial_app.server.uploads import Inputs
from radial_app.server.views import ListedVideo, Video, video_of

MAX_WAITING = 10_000  # jobs of one visitor
MAX_LISTED = 500  # jobs of one list that comes over the web
_PATIENCE = 5.0  # seconds that a visitor waits for a database that another program has locked


@dataclass(frozen=True)
class ServerPaths:
    """Where a server keeps what it has.

    Attributes:
        data: the data folder.
        outputs: where videos go, those of an account into a folder of its name.
        enhancers: the language models, folders or hub ids, that visitors may have prompts enhanced by.
    """

    data: Path
    outputs: Path
    enhancers: tuple[str, ...] = ()

    def without_paths(self, message: str) -> str:
        """A message for visitors, who name things by names: without where the server keeps them."""
        from huggingface_hub import constants

        folders = [self.data / "models", self.data / "adapters", self.data, self.outputs, constants.HF_HUB_CACHE]
        for folder in sorted(map(str, folders), key=len, reverse=True):
            message = message.replace(f"{folder}/", "")
            message = re.sub(rf"{re.escape(folder)}(?![\w.-])", "the server's folder", message)
        return message


_THREAD = threading.local()  # keeps its stores: opening one for each request would cost more than most requests
_ONE_AT_A_TIME = threading.Lock()  # a frame may be large


def store_in(folder: Path) -> JobStore:
    """This thread's store of a data folder."""
    stores: dict[Path, JobStore] = _THREAD.__dict__.setdefault("stores", {})
    if folder not in stores:
        stores[folder] = JobStore(folder, patience=_PATIENCE)
    return stores[folder]


class Service:
    """Jobs as one visitor sees and handles them. Used in one thread, for one request."""

    def __init__(self, paths: ServerPaths, visitor: Visitor) -> None:
        self._paths, self.visitor = paths, visitor
        self.store = store_in(paths.data)
        self.inputs = Inputs(self.store, visitor, paths.enhancers)

    def check(self, fields: dict[str, Any]) -> GenerationRequest:
        """The resolved request of a visitor's fields.

        Raises:
            RequestError: a field breaks a rule, or names what is not there.
        """
        return self.inputs.request(fields).resolve()

    def add(
        self, requests: Iterable[GenerationRequest], output: Output | None = None, finish: FinishBody | None = None
    ) -> list[Job]:  # fmt: skip
        """Put resolved requests into the queue; ``finish`` is done to each when it is there.

        Raises:
            RequestError: too many jobs wait already, or this machine has not the memory for one.
        """
        output = output or Output()
        after = (
            None
            if finish is None
            else finishing_after(read_order(finish, self.inputs, self._paths.data), output.encoding)
        )
        return self.add_jobs([Job(id="", request=request, output=output, finish=after) for request in requests])

    def read_list(
        self, text: str, kind: str, defaults: dict[str, Any], output: Output, warnings: list[str]
    ) -> list[Job]:
        """The jobs of a list: prompts, a table, JSON lines or YAML, with choices, grids and wildcards of its own.

        Args:
            kind: ``txt``, ``csv``, ``jsonl`` or ``yaml``.
            defaults: values of fields that a row leaves open.
            warnings: takes what looks like a slip and is none for certain.

        Raises:
            RequestError: with all of its problems, line by line.
        """
        try:
            jobs = read_jobs(
                Path(f"list.{kind}"), output=output, defaults=defaults, warnings=warnings, text=text,
                make=self.inputs.request, most=MAX_LISTED,
            )  # fmt: skip
        except JobFileError as error:
            raise RequestError("\n".join(error.problems[:20])) from error
        for job in jobs:
            check_bounds(job.story)
        return [replace(job, priority=0) for job in jobs]

    def seconds_of(self, jobs: Iterable[Job]) -> list[float | None]:
        """How long each job should take, by what was made here."""
        known: dict[str, float | None] = {}  # of jobs that are alike
        times: list[float | None] = []
        for job in jobs:
            if job.story is not None or job.beside:
                times.append(None)
                continue
            alike = job.request.model_dump_json(exclude={"prompt", "then", "negative_prompt", "seed"})
            if alike not in known:
                one = self.store.seconds_of(job.request)
                known[alike] = None if one is None else one * job.request.num_videos
            times.append(known[alike])
        return times

    def tell_listed(self, jobs: list[Job]) -> list[ListedVideo]:
        """The jobs of a list as the visitor sees them before they are queued."""
        return [
            ListedVideo(
                source=job.source.partition(":")[2], prompt=job.request.prompt,
                model=self.inputs.fields(job.request)["model"],
                size=f"{job.request.clip_width}x{job.request.clip_height}",
                seconds=round(job.frames / (job.request.fps or 1), 2),
                num_inference_steps=job.request.num_inference_steps, seed=job.request.seed, render_seconds=seconds,
            )
            for job, seconds in zip(jobs, self.seconds_of(jobs), strict=True)
        ]  # fmt: skip

    def add_jobs(self, jobs: list[Job]) -> list[Job]:
        """Put resolved jobs into the queue, all of them or none.

        Raises:
            RequestError: too many jobs wait already, or this machine has not the memory for one.
        """
        self._check_room(len(jobs))
        for job in jobs:
            check_bounds(job.story)
            if job.finish is not None and not job.beside:
                check_after(job, job.finish.what)
        check_all_fit(job.request for job in jobs if job.renders)
        return self.store.add([self._own(job) for job in jobs])

    def _own(self, job: Job) -> Job:
        """A job as one of the visitor's, whose videos go into the visitor's folder."""
        folder = self._paths.outputs / self.visitor.name if self.visitor.name else self._paths.outputs
        output = job.output.model_copy(update={"folder": str(folder)})
        output.path(job.name_values(job.request, 0))
        return replace(job, output=output, source="web", owner=self.visitor.name)

    def get(self, id_: str) -> Job:
        """A job of the visitor's.

        Raises:
            RequestError: there is none of this id for this visitor.
        """
        job = self.store.find_one(id_)
        if job is None or not (self.visitor.admin or job.owner == self.visitor.name):
            raise Missing(f"there is no video {id_[:50]!r}")
        return job

    def view(self, job: Job) -> Video:
        """A job as the visitor sees it."""
        preview = None
        if job.state == "running":
            with contextlib.suppress(OSError):
                preview = self.store.preview_path(job.id).stat().st_mtime
        return video_of(replace(job, error=self.words(job.error)), self.inputs, preview)

    def words(self, text: str) -> str:
        """What of a text of the server's a visitor may read: no places of its files, which are for admins."""
        if self.visitor.admin:
            return text
        if "Traceback (most recent call last)" in text:
            return "an error that admins can read"
        return self._paths.without_paths(text)

    def file(self, id_: str, index: int = 0, *, playable: bool = False) -> Path:
        """A video's file; ``playable``, a copy for browsers where they cannot play the file itself.

        Raises:
            RequestError: there is no such video, or its file is gone.
        """
        job = self.get(id_)
        if not 0 <= index < len(job.files) or not job.files[index].done:
            raise Missing(f"video {id_} has no file {index} yet")
        path = Path(job.files[index].path)
        copy = proxy_path(path)
        found = copy if playable and copy.is_file() else path
        if not found.is_file():
            raise Missing(f"the file of video {id_} is gone" if not path.is_dir() else f"video {id_} is a folder")
        return found

    def thumbnail(self, id_: str, index: int = 0) -> Path:
        """A small picture of a video's first frame, made when it is first asked for.

        Raises:
            RequestError: there is no such video, or its file is gone.
        """
        file = self.file(id_, index, playable=True)
        return self.keep_picture(f"{id_}-{index}", lambda: _first_picture(file), file.stat().st_mtime)

    def keep_picture(self, name: str, draw: Callable[[], Any], since: float = 0.0) -> Path:
        """Where a small picture lies, drawn as an image of Pillow's if it is not there, or older than a moment."""
        folder = self._paths.data / "thumbnails"
        path = folder / f"{name}.webp"
        if not path.exists() or path.stat().st_mtime < since:
            keep_private(folder)
            with _ONE_AT_A_TIME:
                publish(path, lambda partial: _write_small(draw(), partial), overwrite=True)
        return path

    def act(self, id_: str, action: str, keep: bool = True) -> Job:
        """Pause, resume, cancel or retry a job.

        Raises:
            RequestError: the job stands in another way.
        """
        job = self.get(id_)
        ids = [job.id]
        if action == "retry":
            self._check_room(1)
        acts = {"pause": self.store.pause, "resume": self.store.resume, "retry": self.store.retry}
        done = self.store.cancel(ids, keep=keep) if action == "cancel" else acts[action](ids)
        if not done:
            raise Conflict(f"video {job.id} is {job.state}: it cannot be {_PAST[action]}")
        return self.store.get(job.id)

    def edit(self, id_: str, changes: dict[str, Any]) -> Job:
        """Other values of the request of a job that waits.

        Raises:
            RequestError: a value breaks a rule, or the job has begun.
        """
        job = self.get(id_)
        if job.state == "paused" and any(file.done for file in job.files):
            raise Conflict(f"video {job.id} has made {len(job.files)} of its clips: duplicate it")
        return self.store.edit(job.id, **self._translated(job, changes))

    def duplicate(self, id_: str, changes: dict[str, Any]) -> Job:
        """The same job again with other values.

        Raises:
            RequestError: a value breaks a rule.
        """
        job = self.get(id_)
        self._check_room(1)
        (copy,) = self.store.duplicate([job.id], **self._translated(job, changes))
        return copy

    def _translated(self, job: Job, changes: dict[str, Any]) -> dict[str, Any]:
        found = self.inputs.translate(changes)
        if not job.problem and job.story is None and not job.beside:  # which the store tells of
            self.inputs.check(changed_request(job.request, found), found)
        return found

    def remove(self, id_: str) -> None:
        """Forget a job; its files go into the folder ``.trash`` beside them.

        Raises:
            RequestError: it runs, or a job that waits goes on from it.
        """
        job = self.get(id_)
        paths = {file.path for file in job.files}
        if (waiting := self.store.goes_on_from(paths, job.id)) is not None:
            raise Conflict(f"video {waiting} waits to go on from this one: cancel it first")
        rows = self.store.rows_of(job.id)
        if not self.store.remove([job.id], keep_films=True):
            raise Conflict(f"video {job.id} is running: cancel it first")
        moved = []
        if (film := self.store.film_folder(job.id)).is_dir():
            moved.append((str(film), str(move_to_trash(film, job.id))))
        for index, file in enumerate(job.files):
            path = Path(file.path)
            if self.store.job_of_file(file.path) is not None:  # another job's by now, which replaced it
                continue
            for one in (path, proxy_path(path)):
                if file.done and one.exists():
                    moved.append((str(one), str(move_to_trash(one, f"{job.id}-{index}-{one.name}"))))
        for picture in (self._paths.data / "thumbnails").glob(f"{job.id}-*.webp"):
            picture.unlink(missing_ok=True)
        self.trash.keep(rows, moved)

    @property
    def trash(self) -> Trash:
        """Videos that were deleted, and can be had again."""
        return Trash(self._paths.data / "trash", self.store, self.visitor)

    def plan_of(self, request: GenerationRequest) -> dict[str, Any]:
        """A resolved request as its visitor writes it, what it will compute and take, and what to know of it."""
        spec = find_model(request.model)
        found = estimate(request, self.store)
        lack, mend = find_fit(request)
        return {
            "request": self.inputs.fields(request), "lack": lack, "mend": mend,
            "on_disk": checkpoint_folder(spec) is not None or cached_folder(spec.source) is not None,
            "on_gpu": find_device(request.device) != "cpu",
            "seconds": round(request.clip_frames / (request.fps or spec.fps), 2),
            "tokens": request.grid(spec).tokens, "native_frames": spec.native_frames,
            "stride": spec.stride[0], "first_frame": spec.first_frame,
            "computed_share": found.density, "render_seconds": found.seconds,
            "render_seconds_dense": self.store.seconds_of(request.model_copy(update={"attention": "dense"}))
            if request.attention != "dense" else found.seconds,
            "seconds_on_h100": found.seconds_on_h100,
            "memory": found.needs and found.needs.vram("full"), "notes": list(advise(request, spec)),
        }  # fmt: skip

    def _check_room(self, count: int) -> None:
        counts = self.store.counts(self.visitor.scope)
        if sum(counts.get(state, 0) for state in UNFINISHED) + count > MAX_WAITING:
            raise RequestError(f"{MAX_WAITING} jobs wait already: wait for some, or cancel them")


def find_fit(request: GenerationRequest) -> tuple[str | None, dict[str, Any] | None]:
    """What this machine lacks for a resolved request, and values with which it would fit, where some do."""
    try:
        lack = find_lack(request)
    except RequestError as error:
        lack = str(error)
    if lack is None:
        return None, None
    spec = find_model(request.model)
    native = min(request.clip_frames, spec.native_frames)
    sizes = [
        (request.clip_height * share, request.clip_width * share) for share in (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
    ]
    for height, width in [*sizes, (spec.height, spec.width)]:
        height, width, frames = spec.snap_size(round(height), round(width), native)
        changes = {"height": height, "width": width, "num_frames": frames}
        for more in ({}, {"precision": "eight_bit_weights"}):
            with contextlib.suppress(RadialError):
                if find_lack(request.with_values(**changes, **more)) is None:
                    return lack, changes | more
    return lack, None


class Missing(RequestError):
    """What was asked for is not there, or not for this visitor."""


class Conflict(RequestError):
    """A job stands in a way that does not allow what was asked for."""


_PAST = {"pause": "paused", "resume": "resumed", "cancel": "cancelled", "retry": "retried"}


def _first_picture(file: Path) -> Any:
    from PIL import Image

    if file.suffix in (".png", ".gif", ".webp"):
        return Image.open(file).convert("RGB")
    try:
        with contextlib.closing(decode_frames(file)) as frames:
            return Image.fromarray(next(frames))
    except (OutputError, StopIteration) as error:
        raise Missing(f"{file.name} cannot be read") from error


def _write_small(image: Any, partial: Path) -> None:
    image.thumbnail((480, 480))
    image.save(partial, "WEBP", quality=80)
