"""Kandinsky 6: latents have their channels last; text and sound have cross-attention of their own, and sound its own
self-attention, which stays as it is. The frame that a clip starts from is its last one."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.attention.families.cross.kandinsky5 import FAMILY as KANDINSKY_5
from radial.attention.family import Family


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    blocks = transformer.visual_transformer_blocks
    return [(layer, block.video_dec_block.self_attention) for layer, block in enumerate(blocks)]


FAMILY = Family(layouts=KANDINSKY_5.layouts, self_attentions=_self_attentions)
