"""What processes that torchrun started do beside the first one, which has the user and the jobs."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from radial.generation.ranks import Crew, joined
from radial_app.worker.model_cache import ModelHolder

_PATIENCE = 20.0  # seconds for what Ctrl+C begins
_OVERTAKEN = 1.0  # seconds by which it may come after what it caused


@contextlib.contextmanager
def leading(device: str = "auto") -> Iterator[Crew | None]:
    """Lead the crew while the context lasts, where torchrun started several processes; then they go home.

    After an error, and after Ctrl+C, the others may wait in a call: torchrun ends them.
    """
    with joined(device) as crew:
        yield crew
        if crew is not None:
            crew.order(None)


def follow(device: str = "auto", *, through_signals: bool = False) -> None:
    """Join the crew, and load and generate what its leader orders until that leaves, silently.

    Args:
        device: see :meth:`radial.generation.ranks.Crew.join`.
        through_signals: leave it to the leader what SIGTERM means.
    """
    from radial.generation.pipeline import generate

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C comes to the leader, too
    if through_signals:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with joined(device) as crew:
        assert crew is not None
        holder, model = ModelHolder(crew.device, crew), None
        while (order := crew.order()) is not None:
            match order:
                case ("load", job):
                    model = None  # the next one needs its room
                    with contextlib.suppress(Exception):  # which the leader has heard of
                        model = holder.get_with_others(job)
                case ("generate", request, snapshot):
                    for _ in generate(request, model=model, snapshot=snapshot, crew=crew):
                        pass
                case ("drop",):
                    model = None
                    holder.drop()


@contextlib.contextmanager
def last_words(say: Callable[[], None]) -> Iterator[None]:
    """Say something when SIGTERM ends this process, as torchrun does when another one has died.

    This process may hang in a call that waits for the dead one, where no handler of Python's would run.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        came: set[int] = set()
        while signal.SIGTERM not in came:
            numbers = os.read(read, 64)
            if not numbers:  # closed
                os.close(read)
                return
            came.update(numbers)
        # Ctrl+C comes to torchrun, too, whose SIGTERM may overtake it: then there is an order in which to end.
        if signal.SIGINT not in came and select.select([read], [], [], _OVERTAKEN)[0]:
            came.update(os.read(read, 64))
        if signal.SIGINT in came:
            time.sleep(_PATIENCE)
        say()
        os._exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    fd_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        signal.signal(signal.SIGTERM, before)
        os.close(write)
