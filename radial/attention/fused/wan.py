"""Wan's transformer block with fused kernels between its matrix products.

It follows diffusers' ``WanTransformerBlock`` and ``WanAttnProcessor`` step by step; layers are called as they are, so
that adapters on them count.
"""

from __future__ import annotations

import types
from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock
from torch import Tensor, nn

from radial.attention.fused.layers import feed_forward, normed_heads, project
from radial_kernels.fused import gated_residual, residual_norm


class FusedWanAttnProcessor(WanAttnProcessor):
    """Wan's self-attention; norm and rotation of queries and keys are one kernel each."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend over the clip's own tokens, ``[B, S, C]`` to the same."""
        assert encoder_hidden_states is None
        assert rotary_emb is not None
        cos_SD, sin_SD = (angles[0, :, 0] for angles in rotary_emb)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = project(hidden_states, attn.to_q, attn.to_k, attn.to_v)
        query, key, value = normed_heads(attn, query, key, value, cos_SD, sin_SD)
        hidden_states = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )  # fmt: skip
        hidden_states = hidden_states.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](hidden_states))


def fuse(transformer: nn.Module) -> int:
    """Fuse every block that is Wan's own: how many there are."""
    blocks: list[Any] = [block for block in transformer.modules() if type(block) is WanTransformerBlock]
    for block in blocks:
        if type(block.attn1.processor) is WanAttnProcessor and isinstance(block.attn1.norm_q, nn.RMSNorm):
            block.attn1.processor = FusedWanAttnProcessor()
        block.forward = types.MethodType(_forward, block)
    return len(blocks)


def _forward(block: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any) -> Tensor:
    # One set of shifts, scales and gates a clip, or (Wan 2.2 5B) one a token.
    table = block.scale_shift_table if temb.ndim == 3 else block.scale_shift_table.unsqueeze(0)
    parts = (table + temb.float()).unbind(temb.ndim - 2)
    shift, scale, gate, c_shift, c_scale, c_gate = (part if temb.ndim == 4 else part.unsqueeze(1) for part in parts)

    eps = block.norm1.eps
    _, normed = residual_norm(hidden_states, scale=scale, shift=shift, eps=eps)
    attended = block.attn1(normed, None, None, rotary_emb)
    if isinstance(block.norm2, nn.Identity):
        normed = hidden_states = gated_residual(hidden_states, attended, gate)
    else:
        affine = {"weight_C": block.norm2.weight, "bias_C": block.norm2.bias}
        hidden_states, normed = residual_norm(hidden_states, attended, gate, **affine, eps=block.norm2.eps)
    attended = block.attn2(normed, encoder_hidden_states, None, None)
    hidden_states, normed = residual_norm(hidden_states, attended, scale=c_scale, shift=c_shift, eps=block.norm3.eps)
    return gated_residual(hidden_states, feed_forward(block.ffn, normed), c_gate)
