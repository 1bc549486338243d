"""Mochi: one attention over the clip and, after it, the valid words, one batch entry at a time."""

from __future__ import annotations

from typing import Any

from radial.families import Call, Family, patched_grid, with_text
from radial.grid import TokenGrid


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    return with_text(grid, call["encoder_attention_mask"].bool().sum(1).tolist())


FAMILY = Family(grids=_grids)
