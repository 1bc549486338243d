"""Both passes of a guided step made at the call of the first one, where a pipeline makes a call for each.

What the second pass is given beside the first one's arguments, its text, is the same at every step. So a transformer's
first step is made as ever, and what its second call was given is remembered; from then on the first call of a step
makes both, and the second one is handed its outcome. Where it was given anything else than expected, it is made by
itself.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from radial.generation.acceleration.calls import Calls

_HOOK = "radial_both_passes"
# Arguments of the transformers of these pipelines that have an entry for each entry of the batch.
_BATCHED = {
    "encoder_attention_mask", "encoder_hidden_states", "encoder_hidden_states_image", "guidance", "hidden_states",
    "pooled_projections", "timestep",
}  # fmt: skip
Made = tuple[Tensor, ...]
MakeBoth = Callable[
    [nn.Module, Callable[..., Any], inspect.BoundArguments, Mapping[str, Any]], tuple[Made, Made] | None
]
"""Given a transformer, its forward, the arguments of the first pass and those that the second one is expected to be
given: what both make, the first one's first; None where they cannot be made so."""


@contextlib.contextmanager
def both_at_once(transformers: list[Any], calls: Calls, make_both: MakeBoth) -> Iterator[None]:
    """Make both passes by ``make_both`` while the context lasts; to be entered after all that hooks into
    transformers."""
    from diffusers.hooks import HookRegistry

    with contextlib.ExitStack() as undo:
        for transformer in transformers:
            hook = _make_hook(transformer, calls, make_both)
            # Also while a run that goes on stands still, so that its first own step is what it was.
            undo.callback(transformer.register_forward_pre_hook(hook.remember, with_kwargs=True).remove)
            registry = HookRegistry.check_if_exists_or_initialize(transformer)
            registry.register_hook(hook, _HOOK)
            undo.callback(registry.remove_hook, _HOOK, recurse=False)
        yield


def _make_hook(transformer: nn.Module, calls: Calls, make_both: MakeBoth) -> Any:
    from diffusers.hooks import ModelHook

    signature = inspect.signature(type(transformer).forward)

    class PassesHook(ModelHook):
        """Knows what the second pass was last given, and what it made in this step; pipelines take tuples."""

        def __init__(self) -> None:
            super().__init__()
            self.given: Mapping[str, Any] | None = None
            self.wanted: Mapping[str, Any] | None = None
            self.without_prompt: Made = ()

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
                if made and self.wanted is not None and _alike(self.wanted, bound.arguments):
                    return made
                return forward(*args, **kwargs)
            self.without_prompt = ()
            self.wanted = None if self.given is None else _expected(bound.arguments, self.given)
            both = None if self.wanted is None else make_both(module, forward, bound, self.wanted)
            if both is None:
                return forward(*args, **kwargs)
            with_prompt, self.without_prompt = both
            return with_prompt

    return PassesHook()


def _expected(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the second pass of a step will be given: the text that it was ``last`` given, and all else as the ``first``
    pass has it. None where that is not known."""
    wanted = dict(first)
    for name in first.keys() | last.keys():
        one, other = first.get(name), last.get(name)
        if name in ("self", "attention_kwargs", "return_dict"):
            continue
        if not isinstance(one, Tensor):
            if one is not None or other is not None:
                return None
        elif name not in _BATCHED or not isinstance(other, Tensor):
            return None
        elif name.startswith(("encoder_", "pooled_")):
            wanted[name] = other
    return wanted


def _alike(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether arguments are what was expected: the same, or equal."""
    if wanted.keys() != given.keys():
        return False
    for name, value in wanted.items():
        other = given[name]
        if isinstance(value, Tensor):
            if value is not other and not (isinstance(other, Tensor) and torch.equal(value, other)):
                return False
        elif value is not other and value != other:
            return False
    return True
