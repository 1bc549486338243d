"""Motif-Video: one attention over the clip and, after it, image and text; text has cross-attention of its own, too.

Its last blocks, where it has such, attend over the clip twice: as it is decoded and as it was encoded. They stay dense.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.attention.family import Call, Family, numbered, patched_grid, with_text
from radial.plans.layout import Layout


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    joint = numbered(transformer.transformer_blocks, "attn")
    encoding = len(transformer.single_transformer_blocks) - transformer.config.num_decoder_layers
    return joint + numbered(transformer.single_transformer_blocks[:encoding], "attn", first=len(joint))


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    image = 0 if call.get("image_embeds") is None else call["image_embeds"].shape[1]
    if (mask := call.get("encoder_attention_mask")) is None:
        return with_text(grid, [image + call["encoder_hidden_states"].shape[1]])
    return with_text(grid, [image + length for length in mask.sum(1).int().tolist()])


def _refuse(transformer: Any, call: Call) -> str | None:
    mask = call.get("encoder_attention_mask")
    if mask is not None and bool((mask[:, 1:].int() > mask[:, :-1].int()).any()):
        return "its text is padded in front of the words"
    return None


FAMILY = Family(self_attentions=_self_attentions, layouts=_layouts, refuse=_refuse, masks_padding=True)
