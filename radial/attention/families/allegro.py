"""Allegro: text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from radial.attention.families.family import Call, Family, patched_grid
from radial.plans.layout import TokenGrid


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    return (patched_grid(transformer, call["hidden_states"].shape[2:]),)


def _refuse(transformer: Any, call: Call) -> str | None:
    mask = call.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        return "the call masks parts of the clip"
    return None


# The pipeline passes a mask of ones, which the refusal above has seen.
FAMILY = Family(grids=_grids, masks_padding=True, refuse=_refuse)
