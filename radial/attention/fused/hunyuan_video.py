"""HunyuanVideo's transformer blocks with fused kernels between their matrix products.

They follow diffusers' ``HunyuanVideoTransformerBlock``, ``HunyuanVideoSingleTransformerBlock`` and
``HunyuanVideoAttnProcessor2_0`` step by step; layers are called as they are, so that adapters on them count. A text is
so short beside a clip that what is computed for it alone stays stock.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from torch import Tensor, nn

from radial.attention.fused.layers import feed_forward, gelu_beside_and_out, normed_heads, project
from radial_kernels.fused import gated_residual, residual_norm


class FusedHunyuanVideoAttnProcessor(HunyuanVideoAttnProcessor2_0):
    """Attention over clip and text; norm and rotation of queries and keys are one kernel each.

    In single blocks, one projection serves both: there the text may come at the end of the clip's tokens.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, ``[B, S, C]`` and the text's ``[B, T, C]`` to the same."""
        assert image_rotary_emb is not None
        cos_SD, sin_SD = image_rotary_emb
        text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        if encoder_hidden_states is not None and attn.add_q_proj is None:
            hidden_states = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        query, key, value = project(hidden_states, attn.to_q, attn.to_k, attn.to_v)
        query, key, value = normed_heads(attn, query, key, value, cos_SD, sin_SD)
        if encoder_hidden_states is not None and attn.add_q_proj is not None:
            added = project(encoder_hidden_states, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_query, text_key, text_value = (x.unflatten(2, (attn.heads, -1)) for x in added)
            query = torch.cat([query, attn.norm_added_q(text_query)], dim=1)
            key = torch.cat([key, attn.norm_added_k(text_key)], dim=1)
            value = torch.cat([value, text_value], dim=1)
        hidden_states = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )  # fmt: skip
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return hidden_states, None
        hidden_states, encoder_hidden_states = hidden_states[:, :-text], hidden_states[:, -text:]
        if attn.to_out is not None:
            hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if attn.to_add_out is not None:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states


def fuse(transformer: nn.Module) -> int:
    """Fuse every block that is HunyuanVideo's own: how many there are. Blocks that treat the first frame's tokens in a
    way of their own, as those of one image-to-video model, take the processor alone."""
    count = 0
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if type(processor) is HunyuanVideoAttnProcessor2_0 and _normed(module):
            module.processor = FusedHunyuanVideoAttnProcessor()
            count += 1
    for block in transformer.modules():
        if type(getattr(getattr(block, "attn", None), "processor", None)) is not FusedHunyuanVideoAttnProcessor:
            continue
        if type(block) is HunyuanVideoTransformerBlock:
            block.forward = types.MethodType(_forward, block)
        elif type(block) is HunyuanVideoSingleTransformerBlock:
            block.forward = types.MethodType(_single_forward, block)
    return count


def _normed(attention: Any) -> bool:
    norms = (attention.norm_q, attention.norm_k)
    return all(type(norm) is RMSNorm and norm.weight is not None and norm.bias is None for norm in norms)


def _forward(
    block: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor,
    attention_mask: Tensor | None = None, freqs_cis: tuple[Tensor, Tensor] | None = None, *_args: Any, **_options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parts = block.norm1.linear(block.norm1.silu(temb)).unsqueeze(1).chunk(6, dim=2)
    shift, scale, gate, ff_shift, ff_scale, ff_gate = parts
    _, normed = residual_norm(hidden_states, scale=scale, shift=shift, eps=block.norm1.norm.eps)
    normed_text, *text_parts = block.norm1_context(encoder_hidden_states, emb=temb)
    text_gate, text_shift, text_scale, text_ff_gate = (part.unsqueeze(1) for part in text_parts)
    attended, text_attended = block.attn(
        hidden_states=normed, encoder_hidden_states=normed_text, attention_mask=attention_mask,
        image_rotary_emb=freqs_cis,
    )  # fmt: skip
    hidden_states, normed = residual_norm(
        hidden_states, attended, gate, scale=ff_scale, shift=ff_shift, eps=block.norm2.eps
    )
    hidden_states = gated_residual(hidden_states, feed_forward(block.ff, normed), ff_gate)

    encoder_hidden_states = encoder_hidden_states + text_attended * text_gate
    normed_text = block.norm2_context(encoder_hidden_states) * (1 + text_scale) + text_shift
    return hidden_states, encoder_hidden_states + text_ff_gate * block.ff_context(normed_text)


def _single_forward(
    block: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor,
    attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    *_args: Any, **_options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    text = encoder_hidden_states.shape[1]
    joint = torch.cat([hidden_states, encoder_hidden_states], dim=1)
    shift, scale, gate = block.norm.linear(block.norm.silu(temb)).unsqueeze(1).chunk(3, dim=2)
    _, normed = residual_norm(joint, scale=scale, shift=shift, eps=block.norm.norm.eps)
    attended, _ = block.attn(hidden_states=normed, attention_mask=attention_mask, image_rotary_emb=image_rotary_emb)
    projected = gelu_beside_and_out(attended, block.proj_mlp(normed), block.act_mlp, block.proj_out)
    joint = gated_residual(joint, projected, gate)
    return joint[:, :-text], joint[:, -text:]
