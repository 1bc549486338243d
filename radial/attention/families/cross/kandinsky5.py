"""Kandinsky 5: latents have their channels last; text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family, numbered, patched_grid
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    return (Layout.of(patched_grid(transformer, call["hidden_states"].shape[1:4])),)


def _refuse(transformer: Any, call: Call) -> str | None:
    if call.get("sparse_params") is not None:
        return 'it attends by NABLA already (the configuration\'s attention_type is "nabla")'
    return None


FAMILY = Family(
    layouts=_layouts,
    self_attentions=lambda transformer: numbered(transformer.visual_transformer_blocks, "self_attention"),
    refuse=_refuse,
)
