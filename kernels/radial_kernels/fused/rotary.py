"""Norm and rotation of queries or keys in one kernel, a program a token.

Shapes: B batch, S tokens, C channels of all heads, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.block_sparse.tiles import launching_on
from radial_kernels.fused import reference
from radial_kernels.fused.norms import runs_fused, warps_for


@triton.jit
def _norm_rotary_kernel(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, tokens, eps, x_batch, x_token, cos_token, sin_token,
    CHANNELS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    token = row % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    x = tl.load(x_ptr + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
    rms = 1.0 / tl.sqrt(tl.sum(x * x, 0) / CHANNELS + eps)
    x = x * rms * tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    x = x.to(out_ptr.dtype.element_ty).to(tl.float32)  # as the norm alone would round it
    even, odd = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
    pairs = tl.arange(0, BLOCK // 2)
    place = (2 * pairs) % HEAD_DIM
    within = 2 * pairs < CHANNELS
    cos = tl.load(cos_ptr + token * cos_token + place, mask=within, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * sin_token + place + 1, mask=within, other=0.0).to(tl.float32)
    turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    tl.store(out_ptr + row * CHANNELS + columns, turned.to(out_ptr.dtype.element_ty), mask=inside)


def norm_rotary(x_BSC: Tensor, weight_C: Tensor, cos_SD: Tensor, sin_SD: Tensor, eps: float = 1e-6) -> Tensor:
    """The root-mean-square norm over all channels, then a rotation of each pair of neighbours by its token's angle.

    Args:
        x_BSC: queries or keys, all heads side by side.
        cos_SD, sin_SD: of the angles, each twice in a row; the cosine is read at even places, the sine at odd ones.

    Returns:
        ``[B, S, C]``, contiguous.
    """
    if not runs_fused(x_BSC, weight_C, cos_SD, sin_SD):
        return reference.norm_rotary(x_BSC, weight_C, cos_SD, sin_SD, eps)
    batch, tokens, channels = x_BSC.shape
    out = torch.empty(batch, tokens, channels, dtype=x_BSC.dtype, device=x_BSC.device)
    block = triton.next_power_of_2(channels)
    with launching_on(x_BSC):
        _norm_rotary_kernel[batch * tokens,](
            x_BSC, weight_C, cos_SD, sin_SD, out, tokens, eps, x_BSC.stride(0), x_BSC.stride(1), cos_SD.stride(0),
            sin_SD.stride(0), CHANNELS=channels, HEAD_DIM=cos_SD.shape[1], BLOCK=block, num_warps=warps_for(block),
        )  # fmt: skip
    return out
