"""EasyAnimate: one attention over the text and, after it, the clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from radial.families import Call, Family, numbered, patched_grid
from radial.grid import TokenGrid


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    return numbered(transformer.transformer_blocks)


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    side = transformer.config.patch_size
    grid = patched_grid(call["hidden_states"], (1, side, side))
    texts = (call.get("encoder_hidden_states"), call.get("encoder_hidden_states_t5"))
    return (replace(grid, before=sum(text.shape[1] for text in texts if text is not None)),)


FAMILY = Family(self_attentions=_self_attentions, grids=_grids)
