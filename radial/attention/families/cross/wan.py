"""Wan 2.1, 2.2, VACE and Animate, SkyReels V2, ChronoEdit: text and images have cross-attention of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from radial.attention.family import Call, Family, numbered, rotary_outputs, split_at
from radial.attention.packed.wan import PackedWan
from radial.attention.token_order import TokenModules


def _self_attentions(transformer: Any) -> list[tuple[int, nn.Module]]:
    layers = numbered(transformer.blocks)
    # VACE runs a second stack beside the first; each of its blocks feeds the layer that the configuration names.
    if hasattr(transformer, "vace_blocks"):
        pairs = zip(transformer.config.vace_layers, transformer.vace_blocks, strict=True)
        layers += [(layer, block.attn1) for layer, block in pairs]
    return layers


def _cross_attentions(transformer: Any) -> list[nn.Module]:
    blocks = (*transformer.blocks, *getattr(transformer, "vace_blocks", ()))
    return [block.attn2 for block in blocks]


def _refuse(transformer: Any, call: Call) -> str | None:
    if getattr(transformer.config, "num_frame_per_block", 1) > 1:
        return "its attention is causal from block to block of frames (num_frame_per_block above 1)"
    return None


def _sharding(transformer: Any) -> dict[str, Any] | None:
    kind = type(transformer).__name__
    if kind == "SkyReelsV2Transformer3DModel":
        return split_at("blocks.0", rotary_outputs(1), "hidden_states")
    if kind == "WanVACETransformer3DModel":
        plan = split_at("blocks.0", rotary_outputs(1), "hidden_states")
        return plan | split_at("vace_blocks.0", {}, "hidden_states", "control_hidden_states")
    return transformer._cp_plan  # Animate has none


def _reorder(transformer: Any) -> TokenModules | None:
    if type(transformer).__name__ == "WanAnimateTransformer3DModel":  # faces enter frame by frame, between blocks
        return None
    enter = {"patch_embedding": 2, "rope": 1}
    if hasattr(transformer, "vace_patch_embedding"):
        enter["vace_patch_embedding"] = 2
    return TokenModules(enter, arguments=("timestep",))


def _fuse(transformer: Any) -> int:
    from radial.attention.fused.wan import fuse

    return fuse(transformer)


def _packed(transformer: Any) -> PackedWan | None:
    if type(transformer).__name__ != "WanTransformer3DModel" or transformer.config.image_dim is not None:
        return None
    return PackedWan(transformer)


FAMILY = Family(
    self_attentions=_self_attentions, cross_attentions=_cross_attentions, refuse=_refuse, sharding=_sharding,
    reorder=_reorder, fuse=_fuse, packed=_packed,
)  # fmt: skip
