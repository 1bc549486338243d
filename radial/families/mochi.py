"""Mochi: one attention over the clip and, after it, the valid words, one batch entry at a time."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.families import Call, Family, numbered, patched_grid, with_text
from radial.grid import TokenGrid


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    return numbered(transformer.transformer_blocks)


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    side = transformer.config.patch_size
    grid = patched_grid(call["hidden_states"], (1, side, side))
    return with_text(grid, call["encoder_attention_mask"].bool().sum(1).tolist())


FAMILY = Family(self_attentions=_self_attentions, grids=_grids)
