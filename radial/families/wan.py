"""Wan 2.1 and 2.2: text has its own cross-attention, so the self-attention's tokens are the clip's alone.

Shapes: B batch, S tokens, H heads, D head dim, E = H * D.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from radial.attention import AttentionContext
from radial.families import Family
from radial.grid import TokenGrid


class RadialWanProcessor:
    """Self-attention of one Wan layer: the stock processor where the schedule is dense, block-sparse elsewhere."""

    # diffusers sets these on processors that have them.
    _attention_backend = None
    _parallel_config = None

    def __init__(self, layer: int, context: AttentionContext, stock: Any) -> None:
        self.layer, self.context, self.stock = layer, context, stock

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        plan = self.context.plan_for(self.layer)
        if plan is None:
            dense: Tensor = self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return dense
        if attn.fused_projections:
            q_BSE, k_BSE, v_BSE = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            q_BSE, k_BSE, v_BSE = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q_BSHD = attn.norm_q(q_BSE).unflatten(2, (attn.heads, -1))
        k_BSHD = attn.norm_k(k_BSE).unflatten(2, (attn.heads, -1))
        v_BSHD = v_BSE.unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            q_BSHD, k_BSHD = _rotate(q_BSHD, *rotary_emb), _rotate(k_BSHD, *rotary_emb)
        out_BSHD = plan.attend(q_BSHD, k_BSHD, v_BSHD, backend=self.context.backend)
        out: Tensor = attn.to_out[0](out_BSHD.flatten(2, 3).type_as(q_BSHD))
        return attn.to_out[1](out)


def _rotate(x_BSHD: Tensor, cos_1S1D: Tensor, sin_1S1D: Tensor) -> Tensor:
    """Rotary position embedding on interleaved pairs, as diffusers' WanAttnProcessor applies it."""
    even, odd = x_BSHD.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_1S1D[..., 0::2], sin_1S1D[..., 1::2]
    out = x_BSHD.new_empty(x_BSHD.shape)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def _grid(transformer: Any, hidden_states: Tensor) -> TokenGrid:
    """Token grid of latents ``[B, C, F, H, W]``."""
    frames, height, width = hidden_states.shape[2:]
    patch_t, patch_h, patch_w = transformer.config.patch_size
    return TokenGrid(frames // patch_t, height // patch_h, width // patch_w)


def _self_attentions(transformer: Any) -> list[nn.Module]:
    return [block.attn1 for block in transformer.blocks]


FAMILY = Family(
    self_attentions=_self_attentions,
    grid=_grid,
    processor=RadialWanProcessor,
)
