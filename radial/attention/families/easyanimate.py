"""EasyAnimate: one attention over the text and, after it, the clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from radial.attention.families.family import Call, Family, patched_grid
from radial.plans.layout import TokenGrid


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    texts = (call.get("encoder_hidden_states"), call.get("encoder_hidden_states_t5"))
    return (replace(grid, before=sum(text.shape[1] for text in texts if text is not None)),)


FAMILY = Family(grids=_grids)
