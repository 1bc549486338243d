"""The two passes of a guided step on two halves of the processes that share a clip: the first half makes the pass with
the prompt, the second one the pass without, at the same time, and they exchange what came of it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from radial.attention.context_parallel import ContextParallel, peer_failures
from radial.generation.acceleration.calls import Calls
from radial.generation.acceleration.guidance import named
from radial.generation.acceleration.passes import Made, both_at_once


@dataclass(frozen=True)
class Halves:
    """A process's place among the halves of those that share a clip.

    Attributes:
        has_prompt: whether its half makes the pass with the prompt.
        within: the processes of its half, which share that pass; None where the process is its half.
        pair: the group of this process and the one in its place in the other half, that of the prompt first.
    """

    has_prompt: bool
    within: ContextParallel | None
    pair: Any

    @classmethod
    def of(cls, size: int, rank: int, timeout: Any) -> Halves:
        """Halves of an even number of processes; all of them call this."""
        half = size // 2
        groups = [
            distributed.new_group(list(range(first, first + half)), timeout=timeout) if half > 1 else None
            for first in (0, half)
        ]
        pairs = [distributed.new_group([place, place + half], timeout=timeout) for place in range(half)]
        own = groups[rank // half]
        return cls(rank < half, None if own is None else ContextParallel.over(own), pairs[rank % half])

    def exchange(self, parts: Made) -> tuple[Made, Made]:
        """What the pass with the prompt made, and what the one without made, from this half's own.

        Raises:
            ProcessLost: somebody has died.
        """
        both = []
        for part in parts:
            pair = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(2)]
            with peer_failures():
                distributed.all_gather(pair, part.contiguous(), group=self.pair)
            both.append(pair)
        return tuple(pair[0] for pair in both), tuple(pair[1] for pair in both)


def split_guidance(transformers: list[Any], calls: Calls, halves: Halves) -> contextlib.AbstractContextManager[None]:
    """Make a pass on each half while the context lasts; to be entered after all that hooks into transformers."""

    def on_both_halves(
        transformer: nn.Module, forward: Callable[..., Any], first: inspect.BoundArguments, second: Mapping[str, Any]
    ) -> tuple[Made, Made]:
        if halves.has_prompt:
            return halves.exchange(forward(*first.args[1:], **first.kwargs))
        first.arguments.update(second)
        with named(transformer, "uncond"):
            return halves.exchange(forward(*first.args[1:], **first.kwargs))

    return both_at_once(transformers, calls, on_both_halves)
