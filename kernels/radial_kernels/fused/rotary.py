"""Norm and rotation of queries or keys in one kernel, a program a token.

Shapes: B batch, S tokens, C channels of all heads, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.block_sparse.portable.tiles import launching_on
from radial_kernels.fused import reference
from radial_kernels.fused.norms import runs_fused, warps_for


@triton.jit
def _norm_rotary_kernel(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, tokens, turned_tokens, eps, x_batch, x_token, cos_token, sin_token,
    CHANNELS: tl.constexpr, HEAD_DIM: tl.constexpr, A_HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    token = row % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    x = tl.load(x_ptr + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
    if A_HEAD:
        heads = tl.reshape(x, (BLOCK // HEAD_DIM, HEAD_DIM))
        rms = 1.0 / tl.sqrt(tl.sum(heads * heads, 1) / HEAD_DIM + eps)
        x = tl.reshape(heads * rms[:, None], (BLOCK,)) * tl.load(weight_ptr + columns % HEAD_DIM).to(tl.float32)
    else:
        rms = 1.0 / tl.sqrt(tl.sum(x * x, 0) / CHANNELS + eps)
        x = x * rms * tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    x = x.to(out_ptr.dtype.element_ty).to(tl.float32)  # as the norm alone would round it
    even, odd = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
    pairs = tl.arange(0, BLOCK // 2)
    place = (2 * pairs) % HEAD_DIM
    within = (2 * pairs < CHANNELS) & (token < turned_tokens)
    cos = tl.load(cos_ptr + token * cos_token + place, mask=within, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * sin_token + place + 1, mask=within, other=0.0).to(tl.float32)
    turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    tl.store(out_ptr + row * CHANNELS + columns, turned.to(out_ptr.dtype.element_ty), mask=inside)


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
    block = triton.next_power_of_2(channels)
    with launching_on(x_BSC):
        _norm_rotary_kernel[batch * tokens,](
            x_BSC, weight, cos_SD, sin_SD, out, tokens, len(cos_SD), eps, x_BSC.stride(0), x_BSC.stride(1),
            cos_SD.stride(0), sin_SD.stride(0), CHANNELS=channels, HEAD_DIM=head_dim, A_HEAD=a_head, BLOCK=block,
            num_warps=warps_for(block),
        )  # fmt: skip
    return out
