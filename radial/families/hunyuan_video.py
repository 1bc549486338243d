"""HunyuanVideo, text-to-video and image-to-video: one attention over the clip and, after it, the text."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.families import Call, Family, numbered, patched_grid, with_text
from radial.grid import TokenGrid


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    joint = numbered(transformer.transformer_blocks, "attn")
    return joint + numbered(transformer.single_transformer_blocks, "attn", first=len(joint))


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    # The first words are the prompt's, the rest is padding that the mask keeps out.
    return with_text(grid, call["encoder_attention_mask"].sum(1).int().tolist())


FAMILY = Family(self_attentions=_self_attentions, grids=_grids, masks_padding=True)
