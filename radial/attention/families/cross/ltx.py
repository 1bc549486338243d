"""LTX-Video and LTX-2: latents come packed; text and sound have cross-attention of their own."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, rotary_outputs
from radial.attention.token_order import TokenModules
from radial.plans.layout import Layout, TokenGrid


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid = TokenGrid(call["num_frames"], call["height"], call["width"])
    return (Layout.of(grid),)


def _refuse(transformer: Any, call: Call) -> str | None:
    if any(call.get(name) is None for name in ("num_frames", "height", "width")):
        return "the call names no num_frames, height and width, and packed latents do not show them"
    tokens = call["num_frames"] * call["height"] * call["width"]
    if tokens != call["hidden_states"].shape[1]:
        return f"conditioning tokens are packed with the clip ({call['hidden_states'].shape[1]} tokens, not {tokens})"
    if call.get("video_self_attention_mask") is not None:
        return "the call has a mask of its own for the clip's self-attention"
    return None


def _sharding(transformer: Any) -> dict[str, Any] | None:
    if type(transformer).__name__ != "LTXVideoTransformer3DModel":  # LTX-2 lets sound and picture see each other
        return None
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    # Not diffusers' own, which splits the text as well.
    entering = {
        "hidden_states": ContextParallelInput(split_dim=1),
        "timestep": ContextParallelInput(split_dim=1, expected_dims=2),
    }
    return {"": entering, **rotary_outputs(1), "proj_out": ContextParallelOutput(gather_dim=1)}


def _reorder(transformer: Any) -> TokenModules | None:
    if type(transformer).__name__ != "LTXVideoTransformer3DModel":  # LTX-2's sound has positions of the clip's frames
        return None
    return TokenModules({"rope": 1}, arguments=("hidden_states", "timestep"))  # packed already as the call has them


FAMILY = Family(layouts=_layouts, refuse=_refuse, sharding=_sharding, reorder=_reorder)
