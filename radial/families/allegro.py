"""Allegro: text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.families import Call, Family, numbered, patched_grid
from radial.grid import TokenGrid


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    return numbered(transformer.transformer_blocks)


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    config = transformer.config
    return (patched_grid(call["hidden_states"], (config.patch_size_t, config.patch_size, config.patch_size)),)


def _refuse(transformer: Any, call: Call) -> str | None:
    mask = call.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        return "the call masks parts of the clip"
    return None


# The pipeline passes a mask of ones, which the refusal above has seen.
FAMILY = Family(self_attentions=_self_attentions, grids=_grids, masks_padding=True, refuse=_refuse)
