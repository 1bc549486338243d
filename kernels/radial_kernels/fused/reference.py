"""The formulas of the fused kernels in plain torch, with the roundings of diffusers' blocks.

Shapes: B batch, S tokens, C channels, H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def residual_norm(
    x_BSC: Tensor, y_BSC: Tensor | None, gate: Tensor | None, weight_C: Tensor | None, bias_C: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See :func:`radial_kernels.fused.residual_norm`."""
    if y_BSC is not None:
        x_BSC = gated_residual(x_BSC, y_BSC, gate)
    weight_C, bias_C = (None if part is None else part.float() for part in (weight_C, bias_C))
    normed = F.layer_norm(x_BSC.float(), x_BSC.shape[-1:], weight_C, bias_C, eps)
    if scale is not None:
        normed = normed * (1 + scale.float())
    if shift is not None:
        normed = normed + shift.float()
    return x_BSC, normed.type_as(x_BSC)


def gated_residual(x_BSC: Tensor, y_BSC: Tensor, gate: Tensor | None) -> Tensor:
    """See :func:`radial_kernels.fused.gated_residual`."""
    grown = y_BSC.float() if gate is None else y_BSC.float() * gate.float()
    return (x_BSC.float() + grown).type_as(x_BSC)


def norm_rotary(x_BSC: Tensor, weight: Tensor, cos_SD: Tensor, sin_SD: Tensor, eps: float) -> Tensor:
    """See :func:`radial_kernels.fused.norm_rotary`."""
    turned_tokens, head_dim = cos_SD.shape
    wide = x_BSC.float().unflatten(-1, (-1, len(weight)))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    x_BSHD = normed.type_as(x_BSC).flatten(-2).unflatten(-1, (-1, head_dim)).float()
    even, odd = x_BSHD[..., 0::2], x_BSHD[..., 1::2]
    more = (0, 0, 0, x_BSC.shape[1] - turned_tokens)  # tokens that are not turned
    cos = F.pad(cos_SD.float()[:, 0::2], more, value=1.0)[:, None]
    sin = F.pad(sin_SD.float()[:, 1::2], more)[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-3).type_as(x_BSC)


def gelu_beside(x_MK: Tensor, first_MC: Tensor) -> Tensor:
    """See :func:`radial_kernels.fused.gelu_beside`."""
    return torch.cat([first_MC, F.gelu(x_MK, approximate="tanh")], -1)


def quantise_rows(x_MK: Tensor, gelu: bool = False, first_MC: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """e4m3 copies of the rows of a matrix, or of their GELU, and the factor ``[M, 1]`` that turns each back."""
    x_MK = F.gelu(x_MK.float(), approximate="tanh") if gelu else x_MK.float()
    if first_MC is not None:
        x_MK = torch.cat([first_MC.float(), x_MK], 1)
    largest = x_MK.abs().amax(1, keepdim=True).clamp(min=1e-12)
    scale_M1 = largest / torch.finfo(torch.float8_e4m3fn).max
    return (x_MK / scale_M1).to(torch.float8_e4m3fn), scale_M1
