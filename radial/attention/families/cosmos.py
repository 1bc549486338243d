"""Cosmos: text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, patched_grid
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    return (Layout.of(patched_grid(transformer, call["hidden_states"].shape[2:])),)


FAMILY = Family(layouts=_layouts)
