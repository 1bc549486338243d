"""What the processes that torchrun started do: rank 0 has the user and the jobs, and orders the others."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from radial.generation.ranks import Ranks, joined
from radial_app.worker.model_cache import ModelCache

_PATIENCE = 20.0  # seconds for what Ctrl+C begins
_OVERTAKEN = 1.0  # seconds by which it may come after what it caused


@contextlib.contextmanager
def as_first_rank(device: str = "auto") -> Iterator[Ranks | None]:
    """Be rank 0 while the context lasts, where torchrun started several processes; then they go home.

    After an error, and after Ctrl+C, the others may wait in a call: torchrun ends them.
    """
    with joined(device) as ranks:
        yield ranks
        if ranks is not None:
            ranks.order(None)


def take_orders(device: str = "auto", *, through_signals: bool = False) -> None:
    """Join the ranks, and load and generate what rank 0 orders until it leaves, silently.

    Args:
        device: see :meth:`radial.generation.ranks.joined`.
        through_signals: leave it to rank 0 what SIGTERM means.
    """
    from radial.generation.pipeline import generate

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C comes to rank 0, too
    if through_signals:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with joined(device) as ranks:
        assert ranks is not None
        cache, model = ModelCache(ranks.device, ranks), None
        while (order := ranks.order()) is not None:
            match order:
                case ("load", request):
                    model = None  # the next one needs its room
                    with contextlib.suppress(Exception):  # which rank 0 has heard of
                        model = cache.get_with_others(request)
                case ("generate", request, snapshot):
                    for _ in generate(request, model=model, snapshot=snapshot, ranks=ranks):
                        pass
                case ("drop",):
                    model = None
                    cache.drop()


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
