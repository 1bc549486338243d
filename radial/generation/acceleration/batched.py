"""Both passes of a guided step in one call of the transformer, on a batch of two."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from radial.generation.acceleration.calls import Calls
from radial.generation.acceleration.guidance import named
from radial.generation.acceleration.passes import Made, both_at_once


def batched_guidance(transformers: list[Any], calls: Calls) -> contextlib.AbstractContextManager[None]:
    """Make both passes in one call while the context lasts; to be entered after all that hooks into transformers."""
    return both_at_once(transformers, calls, _in_one_call)


def _in_one_call(
    transformer: nn.Module, forward: Callable[..., Any], first: inspect.BoundArguments, second: Mapping[str, Any]
) -> tuple[Made, Made] | None:
    both = _joined(first.arguments, second)
    if both is None:
        return None
    first.arguments.update(both)
    with named(transformer, "cond_uncond"):
        made = forward(*first.args[1:], **first.kwargs)
    return tuple(part.chunk(2)[0] for part in made), tuple(part.chunk(2)[1] for part in made)


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tensors of two calls as those of one that makes both; None where they go into no batch."""
    both = {}
    for name, one in first.items():
        if isinstance(one, Tensor):
            if one.shape != second[name].shape:
                return None
            both[name] = torch.cat([one, second[name]])
    return both
