"""The processes that torchrun started, making one clip at a time together: rank 0 has the user and orders the others.

All of them make the same calls. Between two calls of a transformer rank 0 says a word, so that what it alone knows
(a user who stops, a full disk) ends the clip for everybody. A process that dies leaves the others waiting; torchrun
sees that and ends them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from radial.attention.context_parallel import ContextParallel, end_process_groups, peer_failures
from radial.errors import GenerationError, Lost, RequestError, first_line
from radial.generation.acceleration.split import Halves
from radial.generation.resume import OnStep, Step
from radial.models.find import find_model
from radial.request import GenerationRequest

_GO_ON, _FINISH, _END = range(3)
_STUCK = timedelta(minutes=5)  # that an exchange within a step may take
_PATIENCE = timedelta(seconds=20)  # for rank 0, to meet the error that another rank met
# Seconds for Ctrl+C to come here, too, where it has ended another process first; torchrun's SIGTERM, which follows,
# leaves this process more.
_OVERTAKEN = 0.5
_WAITING = timedelta(days=30)  # for rank 0, who waits for jobs


class Ended(Exception):
    """Rank 0 has ended the clip."""


class PartDone(Exception):
    """A rank has done all that there was for it."""


class Ranks:
    """This process's place among those that make a clip together.

    Attributes:
        parallel: how they share it.
        halves: how they share it where each half makes one of guidance's passes; None where they are an odd number.
        device: this process's, as a request names it.
        broken: whether some process may wait in a call that never ends: nothing more can be made together.
    """

    def __init__(self, parallel: ContextParallel, device: str) -> None:
        self.parallel, self.device = parallel, device
        self.broken = False
        self._words = distributed.new_group(backend="gloo", timeout=_WAITING)
        self.halves = None if parallel.size % 2 else Halves.of(parallel.size, parallel.rank, _STUCK)

    @property
    def is_first(self) -> bool:
        """Whether this process gives the orders and has the videos."""
        return self.parallel.rank == 0

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.parallel.size

    def check(self, request: GenerationRequest) -> None:
        """Make sure that processes can share the request's clip.

        Raises:
            RequestError: they cannot.
        """
        if request.batched_guidance and self.halves is None:
            raise RequestError(
                f"batched_guidance has each half of the processes make a pass, and {self.size} have no halves: leave "
                f"it out, or start {self.size - 1} or {self.size + 1}"
            )
        if request.batched_guidance and request.dense_above:
            raise RequestError(
                "dense_above looks at both passes of a step, and with batched_guidance each half of the processes "
                "makes one of them: leave one of the two out"
            )
        if request.keyframes and find_model(request.model).control_pipeline != "WanVACEPipeline":
            raise RequestError(f"keyframes on {request.model} are for one process, not {self.size} that share a clip")
        if request.cache != "off":
            raise RequestError(
                f"cache {request.cache} keeps what blocks make of a whole clip, and where {self.size} processes share "
                "one each has a part of it: take cache off"
            )

    def order(self, order: Any = None) -> Any:
        """Rank 0's order, for everybody.

        Raises:
            ProcessLost: somebody has died.
        """
        orders = [order]
        with peer_failures():
            distributed.broadcast_object_list(orders, 0, group=self._words)
        return orders[0]

    def agree(self, error: Exception | None) -> None:
        """Go on where nobody has an error; all of them call this.

        Raises:
            Exception: this process's own error.
            GenerationError: another has one.
            ProcessLost: somebody has died.
        """
        errors: list[str | None] = [None] * self.size
        with peer_failures():
            distributed.all_gather_object(errors, None if error is None else str(error), group=self._words)
        if error is not None:
            raise error
        if found := next(((rank, text) for rank, text in enumerate(errors) if text is not None), None):
            raise GenerationError(f"process {found[0]}: {found[1]}")

    def word(self, word: int = _GO_ON) -> int:
        """Say rank 0's word, or hear it.

        Raises:
            Ended: it is that the clip has ended; on all ranks but 0.
            ProcessLost: somebody has died.
        """
        said = torch.tensor(word)
        with peer_failures():
            distributed.broadcast(said, 0, group=self._words)
        if not self.is_first and int(said) == _END:
            raise Ended
        return int(said)

    def wait(self) -> None:
        """Until everybody has come here, however long it takes.

        Raises:
            ProcessLost: somebody has died.
        """
        with peer_failures():
            distributed.barrier(group=self._words)

    def before_call(self, *_: Any) -> None:
        """A hook of the transformer: everybody makes the next call, or nobody."""
        self.word()

    def in_step(self, on_step: OnStep | None) -> OnStep:
        """A function to be told about steps that does everywhere what rank 0's own decides."""

        def decide(step: Step) -> Literal["go on", "finish"]:
            wanted = on_step(step) if self.is_first and on_step is not None else "go on"
            return "finish" if self.word(_FINISH if wanted == "finish" else _GO_ON) == _FINISH else "go on"

        return decide

    def leave(self) -> None:
        """End what the processes share; nothing can be made together any more."""
        del self._words
        self.halves = None
        self.parallel = replace(self.parallel, group=None)
        end_process_groups()

    @contextlib.contextmanager
    def clip(self) -> Iterator[None]:
        """While the context lasts, a clip is made: it ends for everybody when rank 0 leaves it."""
        if self.is_first:
            try:
                yield
            except Lost:
                self.broken = True
                time.sleep(_OVERTAKEN)
                raise
            except Exception:
                self._end()
                raise
            self._end()
            return
        try:
            yield
        except Ended:
            return
        except PartDone:
            pass
        except Exception as error:
            # What everybody meets rank 0 reports. Where it does not, it waits in a call for this process.
            if not self._hears_the_end(_PATIENCE):
                where = f"process {self.parallel.rank}: {first_line(error)}"
                raise GenerationError(where) from error
            return
        self._hears_the_end(_WAITING)

    def _end(self) -> None:
        """End the clip for those who listen. A rank in a call that waits for this process does not: torchrun ends
        it when this process ends."""
        self.broken = not self._broadcast(torch.tensor(_END), _PATIENCE)

    def _broadcast(self, word: Tensor, patience: timedelta) -> bool:
        """Say rank 0's word or hear it: whether that was done in so long a time."""
        work = distributed.broadcast(word, 0, group=self._words, async_op=True)
        assert work is not None
        try:
            work.wait(patience)
        except RuntimeError:
            return False
        return True

    def _hears_the_end(self, patience: timedelta) -> bool:
        """Listen until rank 0 ends the clip, or says nothing for so long: whether it ended it."""
        said = torch.tensor(_GO_ON)
        while int(said) != _END:
            if not self._broadcast(said, patience):
                return False
        return True


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Ranks | None]:
    """Be one of the ranks while the context lasts; None where torchrun did not start several processes.

    Args:
        device: ``cpu``, or ``auto`` for a GPU each.

    Raises:
        RequestError: the device is a certain GPU, or there are fewer than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    if device not in ("auto", "cpu", "cuda"):
        raise RequestError(f"device must be auto or cpu where processes share a clip, not {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= count:
            raise RequestError(f"process {own} has no GPU: {count} are here; start torchrun with so many processes")
        torch.cuda.set_device(own)
        device = f"cuda:{own}"
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_STUCK)
    # Not the default group: modules imported from now on may keep that, and with it its threads.
    ranks = Ranks(ContextParallel.over(distributed.new_group(timeout=_STUCK)), device)
    yield ranks
    ranks.leave()  # after an error the others may wait in a call: the process ends as it is
