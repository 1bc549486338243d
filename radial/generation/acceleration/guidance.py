"""Guidance in some of a run's steps: in the others the pass without the prompt is left out (arXiv 2404.07724).

Pipelines combine two passes as ``uncond + scale * (cond - uncond)``. Where the second one is not made, they are handed
the first one's outcome for it, and what they combine is that outcome. So it is with LTX-2's further guidances.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from radial.generation.acceleration.calls import Calls

_HOOK = "radial_guidance"
# Arguments of transformers that have an entry for each entry of the batch.
_BATCHED = {
    "attention_mask", "audio_coords", "audio_encoder_attention_mask", "audio_encoder_hidden_states",
    "audio_hidden_states", "audio_sigma", "audio_timestep", "encoder_attention_mask", "encoder_hidden_states",
    "encoder_hidden_states_t5", "hidden_states", "sigma", "timestep", "video_coords",
}  # fmt: skip


@contextlib.contextmanager
def guided_within(transformers: list[Any], calls: Calls, guided: range) -> Iterator[None]:
    """Guide these steps alone while the context lasts; to be entered after all that hooks into the transformers."""
    from diffusers.hooks import HookRegistry

    with contextlib.ExitStack() as undo:
        for transformer in transformers:
            registry = HookRegistry.check_if_exists_or_initialize(transformer)
            registry.register_hook(_make_hook(transformer, calls, guided), _HOOK)
            undo.callback(registry.remove_hook, _HOOK, recurse=False)
        yield


def _make_hook(transformer: nn.Module, calls: Calls, guided: range) -> Any:
    from diffusers.hooks import ModelHook

    signature = inspect.signature(type(transformer).forward)

    class GuidanceHook(ModelHook):
        """Makes the pass with the prompt alone, in steps that are not guided; pipelines take tuples."""

        def __init__(self) -> None:
            super().__init__()
            self.with_prompt: Any = None

        @torch.compiler.disable
        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            forward = self.fn_ref.original_forward
            if calls.step in guided:
                return forward(*args, **kwargs)
            if calls.batched:
                if not calls.is_of_both(args, kwargs):  # LTX-2's other guidances, against passes of other kinds
                    return self.with_prompt
                bound = signature.bind(module, *args, **kwargs)
                for name in _BATCHED & bound.arguments.keys():
                    value = bound.arguments[name]
                    if isinstance(value, Tensor) and value.ndim and len(value) == 2:
                        bound.arguments[name] = value[1:]
                with named(module, "cond"):
                    self.with_prompt = forward(*bound.args[1:], **bound.kwargs)
                return tuple(torch.cat([part, part]) for part in self.with_prompt)
            if calls.branch == "cond":
                self.with_prompt = forward(*args, **kwargs)
            return self.with_prompt

    return GuidanceHook()


def named(transformer: Any, branch: str) -> contextlib.AbstractContextManager[None]:
    """Have what is kept for each branch of guidance be kept under this one's name, where the transformer keeps such."""
    if not hasattr(transformer, "cache_context"):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = transformer.cache_context(branch)
    return context
