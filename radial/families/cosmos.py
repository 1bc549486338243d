"""Cosmos: text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.families import Call, Family, numbered, patched_grid
from radial.grid import TokenGrid


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    return numbered(transformer.transformer_blocks)


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    return (patched_grid(call["hidden_states"], transformer.config.patch_size),)


FAMILY = Family(self_attentions=_self_attentions, grids=_grids)
