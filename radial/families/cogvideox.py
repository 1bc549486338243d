"""CogVideoX and ConsisID: one attention over the text and, after it, the clip."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.families import Call, Family, numbered
from radial.grid import TokenGrid


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    return numbered(transformer.transformer_blocks)


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    frames, _, height, width = call["hidden_states"].shape[1:]
    side, depth = transformer.config.patch_size, getattr(transformer.config, "patch_size_t", None) or 1
    text = call["encoder_hidden_states"].shape[1]
    return (TokenGrid(frames // depth, height // side, width // side, before=text),)


FAMILY = Family(self_attentions=_self_attentions, grids=_grids)
