"""Cosmos: text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from radial.attention.families.family import Call, Family, patched_grid
from radial.plans.layout import TokenGrid


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    return (patched_grid(transformer, call["hidden_states"].shape[2:]),)


FAMILY = Family(grids=_grids)
