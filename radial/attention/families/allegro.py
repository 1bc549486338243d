"""Allegro: text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, patched_grid
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    return (Layout.of(patched_grid(transformer, call["hidden_states"].shape[2:])),)


def _refuse(transformer: Any, call: Call) -> str | None:
    mask = call.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        return "the call masks parts of the clip"
    return None


# The pipeline passes a mask of ones, which the refusal above has seen.
FAMILY = Family(layouts=_layouts, masks_padding=True, refuse=_refuse)
