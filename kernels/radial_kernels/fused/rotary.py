"""Norm and rotation of queries or keys in one kernel, a program a token.

Shapes: B batch, S tokens, C channels of all heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from radial_kernels.fused import reference
from radial_kernels.fused.norms import runs_fused, warps_for
from radial_kernels.triton_runtime import launching_on, next_power_of_2


def norm_rotary(x_BSC: Tensor, weight: Tensor, cos_SD: Tensor, sin_SD: Tensor, eps: float = 1e-6) -> Tensor:
    """The root-mean-square norm over all channels, or over those of each head, then a rotation of each pair of
    neighbours by its token's angle.

    Args:
        x_BSC: queries or keys, all heads side by side.
        weight: of the norm: ``[C]``, or ``[D]`` for one over each head.
        cos_SD, sin_SD: of the angles, each twice in a row; the cosine is read at even places, the sine at odd ones.
            Tokens beyond them, as a text's after a clip, are not turned.

    Returns:
        ``[B, S, C]``, contiguous.
    """
    head_dim = cos_SD.shape[1]
    a_head = len(weight) == head_dim != x_BSC.shape[2]
    odd = a_head and head_dim & (head_dim - 1)  # heads are rows of a tile, as long as a power of two
    if odd or not runs_fused(x_BSC, weight, cos_SD, sin_SD):
        return reference.norm_rotary(x_BSC, weight, cos_SD, sin_SD, eps)
    batch, tokens, channels = x_BSC.shape
    out = torch.empty(batch, tokens, channels, dtype=x_BSC.dtype, device=x_BSC.device)
    block = next_power_of_2(channels)
    from radial_kernels.fused.kernels import norm_rotary_kernel

    with launching_on(x_BSC):
        norm_rotary_kernel[batch * tokens,](
            x_BSC, weight, cos_SD, sin_SD, out, tokens, len(cos_SD), eps, x_BSC.stride(0), x_BSC.stride(1),
            cos_SD.stride(0), sin_SD.stride(0), CHANNELS=channels, HEAD_DIM=head_dim, A_HEAD=a_head, BLOCK=block,
            num_warps=warps_for(block),
        )  # fmt: skip
    return out
