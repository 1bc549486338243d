"""Layers of a fused block that share a rounding to 8 bit, or the pass over memory that comes before it.

Shapes: B batch, S tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn

from radial_kernels.fused import EightBitLinear, gelu_beside
from radial_kernels.fused.eight_bit_linear import quantise_rows


def project(x_BSC: Tensor, *layers: Any) -> Sequence[Tensor]:
    """One input through several linear layers; it is rounded once where all are of 8 bit."""
    if not all(type(layer) is EightBitLinear for layer in layers):
        return [layer(x_BSC) for layer in layers]
    x_MK, scale_M1 = quantise_rows(x_BSC.flatten(0, 1))
    return [layer.multiply(x_MK, scale_M1, x_BSC.dtype).view(*x_BSC.shape[:2], -1) for layer in layers]


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
