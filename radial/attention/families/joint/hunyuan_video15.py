"""HunyuanVideo 1.5: after the clip come the valid tokens of image, glyphs and prompt, then all padding."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, numbered, patched_grid, rotary_outputs, split_at, with_text
from radial.attention.token_order import TokenModules
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    image = call["image_embeds"]
    # Text-to-video passes an image of zeros, whose tokens count as padding.
    image_tokens = image.shape[1] if bool(image.any()) else 0
    lengths = call["encoder_attention_mask"].bool().sum(1) + call["encoder_attention_mask_2"].bool().sum(1)
    return with_text(grid, (lengths + image_tokens).int().tolist())


FAMILY = Family(
    layouts=_layouts,
    self_attentions=lambda transformer: numbered(transformer.transformer_blocks, "attn"),
    masks_padding=True,
    reorder=lambda transformer: TokenModules({"x_embedder": 1, "rope": 0}),
    sharding=lambda transformer: split_at("transformer_blocks.0", rotary_outputs(0), "hidden_states"),
)
