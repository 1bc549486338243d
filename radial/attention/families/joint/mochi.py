"""Mochi: one attention over the clip and, after it, the valid words, one batch entry at a time."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, patched_grid, rotary_outputs, split_at, with_text
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    return with_text(grid, call["encoder_attention_mask"].bool().sum(1).tolist())


def _sharding(transformer: Any) -> dict[str, Any]:
    return split_at("transformer_blocks.0", rotary_outputs(0), "hidden_states")


FAMILY = Family(layouts=_layouts, sharding=_sharding)
