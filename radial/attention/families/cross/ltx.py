"""LTX-Video and LTX-2: latents come packed; text and sound have cross-attention of their own."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, rotary_outputs
from radial.attention.token_order import TokenModules
from radial.plans.layout import Layout, TokenGrid


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid, before, after = _clip(call)
    return (Layout.of(grid, before=before, after=after, kind_before="history", kind_after="history"),)


def _clip(call: Call) -> tuple[TokenGrid, int, int]:
    """The clip's grid, and how many tokens of images at other frames than the first lie before it and after it.

    LTX-2 names the clip's sizes, and has such images after it. LTX-Video names none where there are some, but where
    each token lies: every image is a frame of tokens of its own, and the clip begins with the last one at time 0.
    """
    length = call["hidden_states"].shape[1]
    if call.get("num_frames") is not None:
        grid = TokenGrid(call["num_frames"], call["height"], call["width"])
        with_images = call.get("video_coords") is not None and (length - grid.tokens) % grid.tokens_per_frame == 0
        return grid, 0, max(0, length - grid.tokens) if with_images else 0
    times_S, rows_S, columns_S = (call["video_coords"][0, axis] for axis in range(3))
    height, width = len(rows_S.unique()), len(columns_S.unique())
    times_F = times_S[:: height * width]
    begin = int((times_F == times_S.min()).nonzero()[-1])
    return TokenGrid(len(times_F) - begin, height, width), begin * height * width, 0


def _refuse(transformer: Any, call: Call) -> str | None:
    sizes = [call.get(name) for name in ("num_frames", "height", "width")]
    if None in sizes and (call.get("video_coords") is None or sizes[0] is not None):
        return "the call names no num_frames, height and width, and packed latents do not show them"
    grid, before, after = _clip(call)
    length, known = call["hidden_states"].shape[1], before + grid.tokens + after
    if known != length:
        return f"conditioning tokens are packed with the clip ({length} tokens, not {known})"
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
