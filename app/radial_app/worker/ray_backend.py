"""A batch on a Ray cluster: one actor for each GPU renders what this machine's queue hands it.

The queue stays here: threads of this process claim jobs as workers do, stream them to an actor, and keep the snapshots
and files that come back. When an actor or its machine dies, its job goes on from the last snapshot on another.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radial.errors import GenerationError, OutputError, RadialError, RequestError, first_line
from radial.request import GenerationRequest
from radial_app.jobs.job import Job
from radial_app.jobs.results import PASSING, publish_once, settle
from radial_app.jobs.store import MAX_ATTEMPTS, JobStore
from radial_app.worker.attempt import without_home_paths
from radial_app.worker.overdue import GRACE_SECONDS

log = logging.getLogger("radial.cluster")

_SNAPSHOT_SECONDS = 30.0


class Renderer:
    """What runs on the cluster, as a Ray actor: keeps its model, renders one video at a time."""

    def __init__(self, snapshot_seconds: float = _SNAPSHOT_SECONDS) -> None:
        self._snapshot_seconds = snapshot_seconds
        self._model: Any = None
        self._key: Any = None
        self._wanted = ""

    def ask(self, control: str) -> None:
        """Have the video that is being rendered paused, finished or given up after its step."""
        self._wanted = control

    def render(self, request_json: str, group: str, inputs: dict[str, bytes], snapshot: bytes | None) -> Iterator[Any]:
        """Render one video.

        Yields:
            ``("progress", stage, step, steps)``, ``("note", text)`` and ``("snapshot", bytes)``; at last ``("video",
            frames, fps, receipt, step it was finished at)``, ``("stopped", why)`` or ``("failed", why)``.
        """
        import queue

        events: queue.Queue[Any] = queue.Queue()
        self._wanted = ""

        def work() -> None:
            try:
                events.put(self._render(request_json, group, inputs, snapshot, events.put))
            except _Stopped as stopped:
                events.put(("stopped", str(stopped)))
            except RadialError as error:
                events.put(("failed", str(error)))
            except Exception as error:
                events.put(("failed", f"{type(error).__name__}: {error}"))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while True:
            event = events.get()
            yield event
            if event[0] in ("video", "stopped", "failed"):
                thread.join()
                return

    def _render(
        self,
        request_json: str,
        group: str,
        inputs: dict[str, bytes],
        snapshot: bytes | None,
        tell: Callable[[Any], None],
    ) -> Any:
        from radial.generation.pipeline import Event, describe_run, generate
        from radial.generation.resume import Step, read_snapshot
        from radial.loading.load import load

        request = unpack_inputs(GenerationRequest.model_validate_json(request_json), inputs)
        if self._key != group:
            tell(("progress", "load", 0, 0))
            self._model = None

            def on_download(done: int, total: int) -> None:
                tell(("progress", "download", done >> 20, total >> 20))

            self._model, self._key = load(request, on_download), group
        kept = time.monotonic()
        finished_at: int | None = None

        def on_event(event: Event) -> None:
            tell(("note", event.note) if event.note else ("progress", event.stage, event.step, event.steps))

        def on_step(step: Step) -> Any:
            nonlocal kept, finished_at
            if time.monotonic() - kept >= self._snapshot_seconds or step.step == step.steps or self._wanted == "pause":
                kept = time.monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    step.snapshot().write(Path(folder) / "a.safetensors")
                    tell(("snapshot", (Path(folder) / "a.safetensors").read_bytes()))
            if self._wanted in ("pause", "cancel"):
                raise _Stopped(self._wanted)
            if self._wanted == "finish" and step.step < step.steps:
                finished_at = step.step
                return "finish"
            return "go on"

        taken_up = None
        if snapshot is not None:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "a.safetensors").write_bytes(snapshot)
                taken_up = read_snapshot(Path(folder) / "a.safetensors", describe_run(request, self._model))
            if taken_up is not None:
                tell(("note", f"goes on from step {taken_up.step} of {taken_up.steps}"))
        (video,) = generate(request, model=self._model, on_event=on_event, on_step=on_step, snapshot=taken_up)
        return ("video", video.frames, video.fps, video.receipt, finished_at)


class _Stopped(Exception):
    """The user stops a run."""


def pack_inputs(request: GenerationRequest) -> dict[str, bytes]:
    """The files that a request names, by path: another machine has not got them.

    Raises:
        RequestError: one cannot be read.
    """
    paths = [path for path in (request.image, request.last_image, request.extend) if path is not None]
    paths += [lora.path for lora in request.loras if not lora.path.startswith("bundled:")]
    try:
        return {path: Path(path).read_bytes() for path in paths}
    except OSError as error:
        raise RequestError(f"cannot read {error.filename}: {error.strerror}") from error


def unpack_inputs(request: GenerationRequest, inputs: dict[str, bytes]) -> GenerationRequest:
    """Write a request's files here, at the same place on every machine, so that a snapshot fits whoever takes it up."""
    places = {}
    for path, content in inputs.items():
        ours = Path(tempfile.gettempdir()) / f"radial-inputs-{getpass.getuser()}"
        ours.mkdir(mode=0o700, exist_ok=True)
        if ours.stat().st_uid != os.getuid() or ours.stat().st_mode & 0o077:
            raise OutputError(f"{ours} is open to others; remove it")
        folder = ours / hashlib.sha256(content).hexdigest()[:32]
        folder.mkdir(exist_ok=True)
        place = folder / Path(path).name
        if not place.exists():
            partial = folder / f".{secrets.token_hex(4)}"
            partial.write_bytes(content)
            partial.replace(place)
        places[path] = str(place)
    changes: dict[str, Any] = {
        name: places[given]
        for name in ("image", "last_image", "extend")
        if (given := getattr(request, name)) is not None
    }
    loras = [{"path": places.get(lora.path, lora.path), "weight": lora.weight} for lora in request.loras]
    return request.with_values(**changes, loras=loras, device="auto")


@dataclass(frozen=True)
class Cluster:
    """Where actors come from: a factory, and how many fit."""

    new_renderer: Callable[[], Any]
    places: int


@contextlib.contextmanager
def connect(address: str, snapshot_seconds: float, per_device: int = 1) -> Iterator[Cluster]:
    """Join a Ray cluster, or start one on this machine for ``local``.

    Raises:
        RequestError: Ray is not installed, or the cluster cannot be reached.
    """
    if address == "local" and "ray" not in sys.modules:
        os.environ |= _closed()
    try:
        import ray
    except ImportError as error:
        raise RequestError("--ray needs Ray: pip install 'radial-video[cluster]'") from error
    ours = not ray.is_initialized()
    if ours:
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise RequestError(f"no Ray cluster at {address!r}: {first_line(error)}") from error
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        machines = len([node for node in ray.nodes() if node["Alive"]])
        needs: dict[str, float] = {"num_gpus": 1 / per_device} if gpus else {"num_cpus": 1}
        # Two calls at a time, so that it can be asked to stop while it renders.
        remote: Any = ray.remote(max_concurrency=2, **needs)(Renderer)
        yield Cluster(lambda: remote.remote(snapshot_seconds), (gpus or machines) * per_device)
    finally:
        if ours:
            ray.shutdown()


def _closed() -> dict[str, str]:
    """What keeps a cluster on this machine to this machine and this user. Ray reads it when it is imported.

    Without clusters of several machines, which this variable is about, everything listens on 127.0.0.1; a token keeps
    out the other users of the machine.
    """
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # fmt: skip


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # local, auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise RequestError(f"no Ray cluster at {address!r}: {error}") from error


def render_on_cluster(
    store: JobStore, address: str, batch: str, new_view: Callable[[], Any], *, snapshot_seconds: float = 30.0,
    per_device: int = 1, on_renderer: Callable[[Any], None] = lambda renderer: None,
) -> None:  # fmt: skip
    """Render a batch and return when all of it is finished or paused.

    Args:
        new_view: shows how it stands; see :class:`radial_app.cli.render.BatchView`.
        on_renderer: told about every actor that is started.

    Raises:
        RequestError: there is no such cluster.
    """
    with connect(address, snapshot_seconds, per_device) as cluster:
        stop = threading.Event()
        threads = [
            threading.Thread(target=_serve_place, args=(store.folder, cluster, batch, stop, on_renderer), daemon=True)
            for _ in range(cluster.places)
        ]
        for thread in threads:
            thread.start()
        try:
            with new_view() as view:
                while not view.look():
                    store.recover()
                    if not any(thread.is_alive() for thread in threads):
                        raise GenerationError("nothing renders any more on the cluster; see the jobs' logs")
                    time.sleep(0.2)
        finally:
            stop.set()
            for thread in threads:
                thread.join(timeout=10)


def _serve_place(
    folder: Path, cluster: Cluster, batch: str, stop: threading.Event, on_renderer: Callable[[Any], None]
) -> None:
    """Keep one actor busy, and put another in its place when it dies."""
    import ray
    from ray.exceptions import RayActorError

    name = f"ray-{secrets.token_hex(4)}"
    renderer: Any = None
    with JobStore(folder) as store, store.locks.alive(name):
        while not stop.is_set():
            try:
                job = store.claim(name, batch=batch)
            except OutputError as error:  # locked for long, or a full disk
                log.warning("%s", error)
                job = None
            if job is None:
                stop.wait(0.2)
                continue
            if renderer is None:
                renderer = cluster.new_renderer()
                on_renderer(renderer)
            try:
                _render_job(store, job, renderer, stop)
            except RayActorError:
                renderer = None
                _died(store, job.id)
            except RadialError as error:
                passing = isinstance(error, OutputError) and error.errno in PASSING
                store.end(job.id, "queued" if passing else "failed", str(error), wait=5 if passing else 0)
            except Exception as error:  # Ray raises many kinds
                log.exception("job %s", job.id)
                store.end(job.id, "failed", f"{type(error).__name__}: {str(error).splitlines()[0]}")
        if renderer is not None:
            ray.kill(renderer)


def _died(store: JobStore, id_: str) -> None:
    """Another actor takes the job up, unless it has killed too many."""
    job = store.get(id_)
    where = f"its renderer died in stage {job.stage}" + (f", step {job.step} of {job.steps}" if job.step else "")
    if job.attempts >= MAX_ATTEMPTS and not job.control:
        store.end(id_, "failed", f"{where}, {job.attempts} times in a row")
    else:
        store.tell(id_, "error", where)
        store.end(id_, "queued", where)


def _render_job(store: JobStore, job: Job, renderer: Any, stop: threading.Event) -> None:
    """One attempt at a job: what :meth:`radial_app.worker.worker.Worker.render` does, with the work elsewhere."""
    from radial.video.clip import Video

    snapshot = store.snapshot_path(job.id)
    for index, request in enumerate(job.request.singles()):
        if settle(store, job, index) is not None:
            continue
        started = time.monotonic()
        kept = snapshot.read_bytes() if snapshot.exists() else None
        outcome = _stream(store, job, index, renderer, request, kept, stop)
        if outcome[0] == "failed":
            raise GenerationError(outcome[1])
        if outcome[0] == "stopped":
            why = outcome[1]
            store.end(job.id, "cancelled" if why == "cancel" else "paused", failed_attempt=False)
            return
        _, frames, fps, receipt, finished_at = outcome
        if finished_at is not None:
            receipt = receipt | {"finished_at_step": finished_at}
        video = Video(frames, fps, receipt)
        try:
            publish_once(
                store,
                job,
                index,
                without_home_paths(video),
                time.monotonic() - started,
                partial_clip=finished_at is not None,
            )
        except OutputError as error:
            if error.errno not in PASSING:
                raise
            store.end(job.id, "queued", f"waits for {PASSING[error.errno]}: {error}", wait=30, failed_attempt=False)
            return
        snapshot.unlink(missing_ok=True)
        if finished_at is not None:
            store.end(job.id, "cancelled", f"stopped at step {finished_at}; what there was is kept")
            return
    store.end(job.id, "done")


def _stream(
    store: JobStore, job: Job, index: int, renderer: Any, request: GenerationRequest, kept: bytes | None,
    stop: threading.Event,
) -> Any:  # fmt: skip
    """Follow one video on an actor to its end; what it ended with."""
    import ray

    stream = renderer.render.options(num_returns="streaming").remote(
        request.model_dump_json(), job.group, pack_inputs(request), kept
    )
    asked, since = "", time.monotonic()
    while True:
        ready, _ = ray.wait([stream], timeout=0.5)
        control = store.control_of(job.id) or ("pause" if stop.is_set() else "")
        if control and control != asked:
            renderer.ask.remote(control)
            asked, since = control, time.monotonic()
        if not ready:
            if asked and time.monotonic() - since > GRACE_SECONDS:  # in the middle of a long step
                store.tell(job.id, "note", f"its renderer was ended: it had not stopped after {GRACE_SECONDS:.0f} s")
                ray.kill(renderer)
            continue
        event, since = ray.get(next(stream)), time.monotonic()
        if event[0] == "progress":
            store.progress(job.id, event[1], event[2], event[3], index, None)
        elif event[0] == "note":
            store.tell(job.id, "note", event[1])
        elif event[0] == "snapshot":
            _keep(store, job, event[1])
        else:
            return event


def _keep(store: JobStore, job: Job, content: bytes) -> None:
    from radial.files import publish

    def write(partial: Path) -> None:
        partial.write_bytes(content)

    try:
        publish(store.snapshot_path(job.id), write, overwrite=True)
        store.got_further(job.id)
    except OutputError as error:
        log.warning("job %s: no snapshot kept: %s", job.id, error)
