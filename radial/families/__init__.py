"""How each model family computes self-attention, and where its tokens lie. One small file per family."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radial.errors import ModelError
from radial.grid import TokenGrid

if TYPE_CHECKING:
    from torch import Tensor, nn

    from radial.attention import AttentionContext

# Transformer class -> module of this package that knows it.
_FAMILIES = {"WanTransformer3DModel": "wan"}


@dataclass(frozen=True)
class Family:
    """What :mod:`radial.attention` needs to know about a transformer class.

    Attributes:
        self_attentions: the modules whose processor is replaced, in layer order.
        grid: the token grid of a call, from the transformer and its hidden states.
        processor: makes a layer's processor from the layer index, the context and the stock processor.
    """

    self_attentions: Callable[[nn.Module], list[nn.Module]]
    grid: Callable[[nn.Module, Tensor], TokenGrid]
    processor: Callable[[int, AttentionContext, Any], Any]


def find_family(transformer: nn.Module) -> Family:
    """The family of a loaded transformer.

    Raises:
        ModelError: no family knows this class.
    """
    name = type(transformer).__name__
    if name not in _FAMILIES:
        raise ModelError(f"radial attention does not know {name}; it knows {', '.join(sorted(_FAMILIES))}")
    family: Family = importlib.import_module(f"radial.families.{_FAMILIES[name]}").FAMILY
    return family
