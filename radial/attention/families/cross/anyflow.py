"""AnyFlow: Wan's blocks; latents come frame by frame, and text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, numbered, patched_grid
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    _, frames, _, height, width = call["hidden_states"].shape
    return (Layout.of(patched_grid(transformer, (frames, height, width))),)


FAMILY = Family(layouts=_layouts, self_attentions=lambda transformer: numbered(transformer.blocks))
