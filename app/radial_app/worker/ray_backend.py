"""A batch on a Ray cluster: one actor for each GPU renders what this machine's queue hands it.

The queue stays here: threads of this process claim jobs as workers do, stream them to an actor, and keep the snapshots
and files that come back. When an actor or its machine dies, its job goes on from the last snapshot on another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radial.errors import GenerationError, Lost, OutputError, ProcessLost, RadialError, RequestError, first_line
from radial.files import publish
from radial.request import GenerationRequest
from radial_app.jobs.store import JobStore
from radial_app.worker.attempt import Attempt
from radial_app.worker.inputs import pack_inputs
from radial_app.worker.overdue import GRACE_SECONDS
from radial_app.worker.ray_actor import Actor, Failure
from radial_app.worker.rendering import FilmListener, FilmPlace, FinishListener, FinishTask, Listener, Rendered

if TYPE_CHECKING:
    from radial.stories.request import StoryRequest
    from radial.video.film import Film

log = logging.getLogger("radial.cluster")

_LONGEST_REST = 60.0  # seconds between two attempts in a place where actors are lost


@contextlib.contextmanager
def connect(address: str, snapshot_seconds: float, per_device: int = 1) -> Iterator[tuple[Callable[[], Any], int]]:
    """Join a Ray cluster, or start one on this machine for ``local``: what makes an actor there, and how many fit.

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
        remote: Any = ray.remote(max_concurrency=2, **needs)(Actor)
        yield lambda: remote.remote(snapshot_seconds), (gpus or machines) * per_device
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
    per_device: int = 1,
) -> None:  # fmt: skip
    """Render a batch and return when all of it is finished or paused.

    Args:
        new_view: shows how it stands; see :class:`radial_app.cli.render.BatchView`.

    Raises:
        RequestError: there is no such cluster.
    """
    with connect(address, snapshot_seconds, per_device) as (new_actor, places):
        stop = threading.Event()
        threads = [
            threading.Thread(target=_serve_place, args=(store.folder, new_actor, batch, stop), daemon=True)
            for _ in range(places)
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


class _RayRenderer:
    """Renders videos on an actor, and puts another in its place when it is lost."""

    def __init__(self, new_actor: Callable[[], Any]) -> None:
        self._new_actor = new_actor
        self._actor: Any = None

    def render(self, request: GenerationRequest, snapshot: Path, listener: Listener) -> Rendered:
        """Render one video; see :class:`~radial_app.worker.rendering.Renderer`."""
        from ray.exceptions import RayActorError

        from radial.generation.watch import Event

        inputs = pack_inputs(request)
        self._actor = self._actor or self._new_actor()
        kept = snapshot.read_bytes() if snapshot.exists() else None
        stream = self._actor.render.options(num_returns="streaming").remote(request.model_dump_json(), inputs, kept)
        where = "stage load"
        ended = False
        try:
            for event in self._follow(stream, listener):
                ended = isinstance(event, (Rendered, Failure))
                match event:
                    case Rendered():
                        return event
                    case Failure():
                        event.rethrow()
                    case ("snapshot", content):
                        listener.keep(_writer(content))
                    case ("preview", frame):
                        listener.show(frame)
                    case Event():
                        if not event.note:
                            where = f"stage {event.stage}" + (
                                f", step {event.step} of {event.steps}" * bool(event.step)
                            )
                        listener.on_event(event)
        except RayActorError as error:
            raise ProcessLost(f"its renderer died in {where}") from error
        except Lost:
            ended = False  # what lost its GPU makes nothing more
            raise
        finally:
            if not ended:  # it may render on, for nobody
                self.drop()
        raise AssertionError("a stream ends with what was rendered or with why not")

    def render_film(self, story: StoryRequest, place: FilmPlace, listener: FilmListener) -> Film:
        """Films are not rendered on a cluster: what they go on from stays on one machine.

        Raises:
            RequestError: always.
        """
        raise RequestError("a story is made on one machine, not on a cluster: leave --ray out")

    def finish(self, task: FinishTask, listener: FinishListener) -> Film:
        """Clips are not finished on a cluster: they lie on one machine.

        Raises:
            RequestError: always.
        """
        raise RequestError("a clip is finished on one machine, not on a cluster: leave --ray out")

    def _follow(self, stream: Any, listener: Listener) -> Iterator[Any]:
        """What the actor tells, while it is asked for what the listener wishes; one that does not answer is ended."""
        import ray

        asked, since = "", time.monotonic()
        while True:
            ready, _ = ray.wait([stream], timeout=0.5)
            wish = listener.wish()
            if wish and wish != asked:
                self._actor.ask.remote(wish)
                asked, since = wish, time.monotonic()
            if ready:
                since = time.monotonic()
                yield ray.get(next(stream))
            elif asked and time.monotonic() - since > GRACE_SECONDS:  # in the middle of a long step
                raise ProcessLost(f"its renderer was ended: it had not stopped after {GRACE_SECONDS:.0f} s")

    def drop(self) -> None:
        """End the actor."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


def _writer(content: bytes) -> Callable[[Path], None]:
    return lambda path: publish(path, lambda partial: partial.write_bytes(content), overwrite=True)


def _serve_place(folder: Path, new_actor: Callable[[], Any], batch: str, stop: threading.Event) -> None:
    """Keep one actor busy. Where actors are lost one after the other, as on a GPU that is broken, jobs go elsewhere
    meanwhile."""
    name, lost = f"ray-{secrets.token_hex(4)}", 0
    renderer = _RayRenderer(new_actor)
    with JobStore(folder) as store, store.locks.alive(name):
        while not stop.is_set():
            try:
                job = store.claim(name, batch=batch, clips_alone=True)
            except OutputError as problem:  # locked for long, or a full disk
                log.warning("%s", problem)
                job = None
            if job is None:
                stop.wait(0.2)
                continue
            error = Attempt(store, job, renderer, stop=stop).run()
            lost = lost + 1 if isinstance(error, Lost) else 0
            if lost:
                stop.wait(min(2.0 ** (lost - 1), _LONGEST_REST))
            elif error is not None and not isinstance(error, RadialError):
                renderer.drop()
        renderer.drop()
