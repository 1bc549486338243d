"""HunyuanVideo, text-to-video and image-to-video: one attention over the clip and, after it, the text."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.attention.family import Call, Family, numbered, patched_grid, rotary_outputs, split_at, with_text
from radial.attention.packed.hunyuan_video import PackedHunyuanVideo
from radial.attention.token_order import TokenModules
from radial.plans.layout import Layout


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    joint = numbered(transformer.transformer_blocks, "attn")
    return joint + numbered(transformer.single_transformer_blocks, "attn", first=len(joint))


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    # The first words are the prompt's, the rest is padding that the mask keeps out.
    return with_text(grid, call["encoder_attention_mask"].sum(1).int().tolist())


def _sharding(transformer: Any) -> dict[str, Any] | None:
    if transformer.config.image_condition_type == "token_replace":  # its blocks look for the first frame's tokens
        return None
    return split_at("transformer_blocks.0", rotary_outputs(0), "hidden_states")


def _fuse(transformer: Any) -> int:
    from radial.attention.fused.hunyuan_video import fuse

    return fuse(transformer)


def _reorder(transformer: Any) -> TokenModules:
    return TokenModules({"x_embedder": 1, "rope": 0})  # blocks that look for the first frame find it in front


def _packed(transformer: Any) -> PackedHunyuanVideo | None:
    if transformer.config.image_condition_type == "token_replace":  # its blocks look for the first frame's tokens
        return None
    return PackedHunyuanVideo(transformer)


FAMILY = Family(
    self_attentions=_self_attentions, layouts=_layouts, masks_padding=True, sharding=_sharding, reorder=_reorder,
    fuse=_fuse, packed=_packed,
)  # fmt: skip
