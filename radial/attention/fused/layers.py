"""Parts of a fused block that families share: layers of one input, and what comes before and after a product.

Shapes: B batch, S tokens, C channels, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn

from radial_kernels.fused import EightBitLinear, gelu_beside, norm_rotary
from radial_kernels.fused.eight_bit_linear import quantise_rows


def project(x_BSC: Tensor, *layers: Any) -> Sequence[Tensor]:
    """One input through several linear layers; it is rounded once where all are of 8 bit."""
    if not all(type(layer) is EightBitLinear for layer in layers):
        return [layer(x_BSC) for layer in layers]
    x_MK, scale_M1 = quantise_rows(x_BSC.flatten(0, 1))
    return [layer.multiply(x_MK, scale_M1, x_BSC.dtype).view(*x_BSC.shape[:2], -1) for layer in layers]


def normed_heads(
    attn: Any, query: Tensor, key: Tensor, value: Tensor, cos_SD: Tensor, sin_SD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys by the attention's own norms, turned by their tokens' angles, and all three ``[B, S, H, D]``."""
    query = norm_rotary(query, attn.norm_q.weight, cos_SD, sin_SD, attn.norm_q.eps)
    key = norm_rotary(key, attn.norm_k.weight, cos_SD, sin_SD, attn.norm_k.eps)
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
    return query, key, value


def feed_forward(ffn: Any, x_BSC: Tensor) -> Tensor:
    """The layer's own feed-forward; in 8 bit its GELU and the rounding of what comes of it are one kernel."""
    gelu, _, out = ffn.net
    if type(out) is not EightBitLinear or type(gelu) is not GELU or gelu.approximate != "tanh":
        return ffn(x_BSC)
    x_MK, scale_M1 = quantise_rows(gelu.proj(x_BSC).flatten(0, 1), gelu=True)
    return out.multiply(x_MK, scale_M1, x_BSC.dtype).view(*x_BSC.shape[:2], -1)


def gelu_beside_and_out(attended_BSC: Tensor, inner_BSC: Tensor, gelu: Any, out: Any) -> Tensor:
    """What attention gave and, beside it, the GELU of a feed-forward's inner layer, through a layer for both."""
    first_MC, inner_MK = attended_BSC.flatten(0, 1), inner_BSC.flatten(0, 1)
    if type(gelu) is not nn.GELU or gelu.approximate != "tanh":
        return out(torch.cat([attended_BSC, gelu(inner_BSC)], 2))
    if type(out) is EightBitLinear:
        x_MK, scale_M1 = quantise_rows(inner_MK, gelu=True, first_MC=first_MC)
        return out.multiply(x_MK, scale_M1, inner_BSC.dtype).view(*inner_BSC.shape[:2], -1)
    return out(gelu_beside(inner_MK, first_MC).view(*inner_BSC.shape[:2], -1))
