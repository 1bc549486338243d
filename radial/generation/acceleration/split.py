"""The two passes of a guided step on two halves of the processes that share a clip: the first half makes the pass with
the prompt, the second one the pass without, at the same time, and they exchange what came of it.

As in :mod:`radial.generation.acceleration.batched`, what the second pass is given is known from the step before: in a
transformer's first step every process makes both.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from radial.attention.context_parallel import ContextParallel, peer_failures
from radial.generation.acceleration.batched import alike, expected
from radial.generation.acceleration.calls import Calls
from radial.generation.acceleration.guidance import named

_HOOK = "radial_split_guidance"


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

    def exchange(self, parts: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
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


@contextlib.contextmanager
def split_guidance(transformers: list[Any], calls: Calls, halves: Halves) -> Iterator[None]:
    """Make a pass on each half while the context lasts; to be entered after all that hooks into transformers."""
    from diffusers.hooks import HookRegistry

    with contextlib.ExitStack() as undo:
        for transformer in transformers:
            hook = _make_hook(transformer, calls, halves)
            # Also while a run that goes on stands still, so that its first own step is what it was.
            undo.callback(transformer.register_forward_pre_hook(hook.remember, with_kwargs=True).remove)
            registry = HookRegistry.check_if_exists_or_initialize(transformer)
            registry.register_hook(hook, _HOOK)
            undo.callback(registry.remove_hook, _HOOK, recurse=False)
        yield


def _make_hook(transformer: nn.Module, calls: Calls, halves: Halves) -> Any:
    from diffusers.hooks import ModelHook

    signature = inspect.signature(type(transformer).forward)

    class SplitHook(ModelHook):
        """Knows what the second pass was last given, and what it made in this step; pipelines take tuples."""

        def __init__(self) -> None:
            super().__init__()
            self.given: Mapping[str, Any] | None = None
            self.wanted: Mapping[str, Any] | None = None
            self.without_prompt: tuple[Tensor, ...] = ()

        @torch.compiler.disable
        def remember(self, module: nn.Module, args: Any, kwargs: Any) -> None:
            """Note what a second pass is given, for the steps to come."""
            if calls.branch == "uncond":
                self.given = signature.bind(module, *args, **kwargs).arguments

        @torch.compiler.disable
        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            forward = self.fn_ref.original_forward
            bound = signature.bind(module, *args, **kwargs)
            if calls.branch == "uncond":
                made, self.without_prompt = self.without_prompt, ()
                if made and self.wanted is not None and alike(self.wanted, bound.arguments):
                    return made
                return forward(*args, **kwargs)
            self.without_prompt = ()
            self.wanted = None if self.given is None else expected(bound.arguments, self.given)
            if self.wanted is None:
                return forward(*args, **kwargs)
            if halves.has_prompt:
                own = forward(*args, **kwargs)
            else:
                bound.arguments.update(self.wanted)
                with named(module, "uncond"):
                    own = forward(*bound.args[1:], **bound.kwargs)
            with_prompt, self.without_prompt = halves.exchange(own)
            return with_prompt

    return SplitHook()
