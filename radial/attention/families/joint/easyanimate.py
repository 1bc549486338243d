"""EasyAnimate: one attention over the text and, after it, the clip."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, patched_grid
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    texts = (call.get("encoder_hidden_states"), call.get("encoder_hidden_states_t5"))
    return (Layout.of(grid, before=sum(text.shape[1] for text in texts if text is not None)),)


FAMILY = Family(layouts=_layouts)
