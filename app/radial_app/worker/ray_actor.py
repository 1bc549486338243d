"""What runs on a cluster: an actor that renders one video after the other and streams what becomes of them."""

from __future__ import annotations

import queue
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radial import errors
from radial.errors import RadialError
from radial.request import GenerationRequest
from radial_app.worker.inputs import unpack_inputs
from radial_app.worker.model_cache import ModelCache
from radial_app.worker.rendering import LocalRenderer, RemoteError, Rendered, Stopped, Wish

if TYPE_CHECKING:
    from radial.generation.watch import Event
    from radial.video.encoding import Frames


@dataclass(frozen=True)
class Failure:
    """Why a video was not rendered: one of our errors by its name, or another with its traceback."""

    kind: str
    message: str
    errno: int | None = None
    trace: str = ""

    def rethrow(self) -> None:
        """Raise it here.

        Raises:
            Stopped, RadialError, RemoteError: what was raised there.
        """
        if self.kind == "Stopped":
            raise Stopped(self.message)  # type: ignore[arg-type]
        if not self.kind:
            raise RemoteError(self.message, self.trace)
        error = getattr(errors, self.kind)(self.message)
        if self.errno is not None:
            error.errno = self.errno
        raise error


class Actor:
    """Keeps its model, renders one video at a time."""

    def __init__(self, snapshot_seconds: float) -> None:
        self._renderer = LocalRenderer(ModelCache("auto"), snapshot_seconds)
        self._wish: Wish = ""

    def ask(self, wish: Wish) -> None:
        """Have the video that is being rendered paused, finished or given up after its step."""
        self._wish = wish

    def render(self, request_json: str, inputs: dict[str, bytes], snapshot: bytes | None) -> Iterator[Any]:
        """Render one video.

        Yields:
            Events, ("snapshot", its bytes), ("preview", frame); at last what was rendered, or a :class:`Failure`.
        """
        told: queue.Queue[Any] = queue.Queue()
        self._wish = ""
        work = threading.Thread(target=lambda: told.put(self._render(request_json, inputs, snapshot, told.put)))
        work.daemon = True
        work.start()
        while True:
            event = told.get()
            yield event
            if isinstance(event, (Rendered, Failure)):
                work.join()
                return

    def _render(
        self, request_json: str, inputs: dict[str, bytes], snapshot: bytes | None, tell: Callable[[Any], None]
    ) -> Rendered | Failure:
        try:
            request = unpack_inputs(GenerationRequest.model_validate_json(request_json), inputs)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "snapshot.safetensors"
                if snapshot is not None:
                    path.write_bytes(snapshot)
                return self._renderer.render(request, path, _Stream(tell, lambda: self._wish))
        except Stopped as stopped:
            return Failure("Stopped", stopped.why)
        except RadialError as error:
            return Failure(type(error).__name__, str(error), getattr(error, "errno", None))
        except Exception as error:
            message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return Failure("", message, trace=traceback.format_exc())


class _Stream:
    """Passes on what a listener hears."""

    def __init__(self, tell: Callable[[Any], None], wish: Callable[[], Wish]) -> None:
        self._tell, self.wish = tell, wish

    def on_event(self, event: Event) -> None:
        self._tell(event)

    def keep(self, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "snapshot.safetensors"
            write(path)
            self._tell(("snapshot", path.read_bytes()))

    def show(self, frame: Frames) -> None:
        self._tell(("preview", frame))
