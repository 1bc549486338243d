"""HunyuanVideo 1.5: after the clip come the valid tokens of image, glyphs and prompt, then all padding."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.attention.family import Call, Family, numbered, patched_grid, rotary_outputs, split_at, with_text
from radial.plans.layout import Layout


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    return numbered(transformer.transformer_blocks, "attn")


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    image = call["image_embeds"]
    # Text-to-video passes an image of zeros, whose tokens count as padding.
    image_tokens = image.shape[1] if bool(image.any()) else 0
    lengths = call["encoder_attention_mask"].bool().sum(1) + call["encoder_attention_mask_2"].bool().sum(1)
    return with_text(grid, (lengths + image_tokens).int().tolist())


def _sharding(transformer: Any) -> dict[str, Any]:
    return split_at("transformer_blocks.0", rotary_outputs(0), "hidden_states")


FAMILY = Family(self_attentions=_self_attentions, layouts=_layouts, masks_padding=True, sharding=_sharding)
