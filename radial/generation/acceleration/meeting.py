"""Where runs of one model that share its transformer meet: their calls, and stand-ins that hand these over.

One thread runs at a time. A run's pipeline has a stand-in for the transformer, which hands its call over and waits;
once every run that goes on has come to a call, those of one timestep are made as a pack, in the order of the runs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from radial.attention.packed.clips import PackedClips
from radial.errors import first_line


class Ended(Exception):
    """Whoever asked for the videos does not wait for them any more."""


class Meeting:
    """Where the runs' calls come together.

    Attributes:
        packed: calls the transformer.
        tell: what each run's user is told by, by the run's number.
        together: with how many clips, itself among them, a run's clip has been in one call at most.
    """

    def __init__(self, count: int) -> None:
        self.packed: PackedClips | None = None
        self.tell: dict[int, Callable[[str], None]] = {}
        self.together = [1] * count
        self._turn = threading.Condition()
        self._going_on = set(range(count))
        self._calls: dict[int, dict[str, Any] | None] = {}
        self._made: dict[int, Tensor | Exception | None] = {}
        self._notes: dict[int, str] = {}
        self._ended = False

    @property
    def first(self) -> int:
        """The first run that goes on."""
        return min(self._going_on, default=0)

    @property
    def going_on(self) -> frozenset[int]:
        """The runs that have not ended."""
        return frozenset(self._going_on)

    @contextlib.contextmanager
    def taking_turns(self, number: int) -> Iterator[None]:
        """Run while all others wait for their calls; what others wait for is made when this one ends."""
        with self._turn:
            try:
                yield
            finally:
                self._going_on.discard(number)
                self._make()

    def call(self, number: int, call: dict[str, Any]) -> Tensor:
        """What the transformer predicts of a run's clip."""
        made = self._come(number, call)
        assert made is not None
        return made

    def wait(self, number: int) -> None:
        """Wait until every run that goes on has come to a call, or waits too."""
        self._come(number, None)

    def end(self) -> None:
        """Have runs that still wait end."""
        with self._turn:
            self._ended = True
            self._turn.notify_all()

    def _come(self, number: int, call: dict[str, Any] | None) -> Tensor | None:
        self._calls[number] = call
        self._make()
        self._turn.wait_for(lambda: self._ended or number in self._made)
        made = self._made.pop(number, Ended())
        if (note := self._notes.pop(number, "")) and number in self.tell:
            self.tell[number](note)  # by the run's own thread
        if isinstance(made, Exception):
            raise made
        return made

    def _make(self) -> None:
        """Make the calls, once every run that goes on has come to one."""
        if self._ended or not self._calls or self._calls.keys() < self._going_on:
            return
        calls = {number: call for number, call in self._calls.items() if call is not None}
        self._made.update(dict.fromkeys(self._calls.keys() - calls.keys()))
        self._calls = {}

        def at(number: int) -> float:
            return float(calls[number]["timestep"].flatten().max())

        # In the order of the runs, whoever came first: where in a pack a clip lies may be a matter of rounding.
        for _, group in itertools.groupby(sorted(calls, key=lambda number: (at(number), number)), key=at):
            numbers = list(group)
            self._made.update(zip(numbers, self._predict(numbers, [calls[number] for number in numbers]), strict=True))
        self._turn.notify_all()

    @torch.inference_mode()
    def _predict(self, numbers: list[int], calls: list[dict[str, Any]]) -> Sequence[Tensor | Exception]:
        assert self.packed is not None
        device = calls[0]["hidden_states"].device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            try:
                made = self.packed(calls)
            except torch.AcceleratorError as error:
                return [error] * len(calls)  # the device is lost, and all clips with it
            except Exception as error:
                if len(calls) == 1:
                    return [error]
                why = first_line(error)
            else:
                for number in numbers:
                    self.together[number] = max(self.together[number], len(calls))
                return made
            for number in numbers:
                self._notes[number] = f"{len(calls)} clips could not share a call ({why}): each had its own"
            return [one for call in calls for one in self._predict([], [call])]


def shell_of(pipe: Any, meeting: Meeting, number: int) -> Any:
    """A pipeline of the same parts, whose transformer is a stand-in and whose scheduler and autoencoder are its own."""
    shell = copy.copy(pipe)
    shell.transformer = _stand_in(pipe.transformer, functools.partial(meeting.call, number))
    shell.scheduler, shell.vae = copy.deepcopy(pipe.scheduler), copy.copy(pipe.vae)
    return shell


def _stand_in(transformer: Any, make: Callable[[dict[str, Any]], Tensor]) -> Any:
    """What a pipeline takes for the transformer. Radial attention that a run installs on it plans and counts as on the
    real one."""
    from diffusers import CacheMixin

    kind = type(transformer)
    signature = inspect.signature(kind.forward)

    class StandIn(nn.Module, CacheMixin):
        config, dtype, device = transformer.config, transformer.dtype, transformer.device

        @functools.wraps(kind.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            call = dict(signature.bind(self, *args, **kwargs).arguments)
            del call["self"]
            as_tuple = not call.pop("return_dict", True)
            made = make({name: value for name, value in call.items() if value is not None})
            return (made,) if as_tuple else SimpleNamespace(sample=made)

    StandIn.__name__ = kind.__name__
    stand_in: Any = StandIn()
    for name in ("blocks", "transformer_blocks", "single_transformer_blocks"):
        blocks = getattr(transformer, name, None)
        if blocks is not None:
            setattr(stand_in, name, [_block_of(block) for block in blocks])
    return stand_in


def _block_of(block: Any) -> Any:
    """What of a block says how it attends."""
    name = "attn1" if hasattr(block, "attn1") else "attn"
    attention = getattr(block, name)
    own = SimpleNamespace(processor=copy.copy(attention.processor), heads=attention.heads, to_q=attention.to_q)
    return SimpleNamespace(**{name: own})
