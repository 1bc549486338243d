"""CogVideoX and ConsisID: one attention over the text and, after it, the clip."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, patched_grid, split_at
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    frames, _, height, width = call["hidden_states"].shape[1:]
    text = call["encoder_hidden_states"].shape[1]
    return (Layout.of(patched_grid(transformer, (frames, height, width)), before=text),)


def _sharding(transformer: Any) -> dict[str, Any] | None:
    if type(transformer).__name__ != "CogVideoXTransformer3DModel":  # ConsisID adds faces between blocks
        return None
    from diffusers.models._modeling_parallel import ContextParallelInput

    rotary = {"": {"image_rotary_emb": [ContextParallelInput(split_dim=0)] * 2}}
    return split_at("transformer_blocks.0", rotary, "hidden_states")


FAMILY = Family(layouts=_layouts, sharding=_sharding)
