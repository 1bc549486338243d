"""Residual, layer norm and modulation of a transformer block in one kernel, a program a token.

Shapes: B batch, S tokens, C channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.block_sparse.backends import interpreted
from radial_kernels.block_sparse.portable.tiles import launching_on
from radial_kernels.fused import reference


@triton.jit
def _residual_norm_kernel(
    x_ptr, y_ptr, gate_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, sum_ptr, normed_ptr,
    tokens, eps, gate_batch, gate_token, scale_batch, scale_token, shift_batch, shift_token,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    token = row % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    x = tl.load(x_ptr + row * CHANNELS + columns, mask=inside, other=0.0).to(tl.float32)
    if y_ptr is not None:
        y = tl.load(y_ptr + row * CHANNELS + columns, mask=inside, other=0.0).to(tl.float32)
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + batch * gate_batch + token * gate_token + columns, mask=inside, other=0.0)
            y *= gate.to(tl.float32)
        # The norm is of what is kept, rounded as it is.
        rounded = (x + y).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * CHANNELS + columns, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if normed_ptr is not None:
        mean = tl.sum(x, 0) / CHANNELS
        centred = tl.where(inside, x - mean, 0.0)
        variance = tl.sum(centred * centred, 0) / CHANNELS
        normed = centred * (1.0 / tl.sqrt(variance + eps))
        if weight_ptr is not None:
            normed *= tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            normed += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + batch * scale_batch + token * scale_token + columns, mask=inside, other=0.0)
            normed *= 1.0 + scale.to(tl.float32)
        if shift_ptr is not None:
            shift = tl.load(shift_ptr + batch * shift_batch + token * shift_token + columns, mask=inside, other=0.0)
            normed += shift.to(tl.float32)
        tl.store(normed_ptr + row * CHANNELS + columns, normed.to(normed_ptr.dtype.element_ty), mask=inside)


def residual_norm(
    x_BSC: Tensor,
    y_BSC: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    weight_C: Tensor | None = None,
    bias_C: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """The residual stream ``x + y * gate``, and its layer norm times ``weight`` plus ``bias``, times ``1 + scale``,
    plus ``shift``. Sums are in float32; the stream is rounded to its dtype before the norm, as diffusers' blocks do.

    Args:
        x_BSC: the residual stream.
        y_BSC: what a layer adds to it; nothing when left out.
        gate, scale, shift: ``[B or 1, S or 1, C]``, of any dtype and stride but for contiguous channels.
        weight_C, bias_C: of the norm.

    Returns:
        Both in the dtype of ``x_BSC``; the stream is ``x_BSC`` itself where nothing is added.
    """
    tensors = (x_BSC, y_BSC, gate, weight_C, bias_C, scale, shift)
    if not runs_fused(*tensors):
        return reference.residual_norm(x_BSC, y_BSC, gate, weight_C, bias_C, scale, shift, eps)
    stream, normed = _launch(x_BSC, y_BSC, gate, weight_C, bias_C, scale, shift, eps)
    assert normed is not None
    return stream, normed


def gated_residual(x_BSC: Tensor, y_BSC: Tensor, gate: Tensor) -> Tensor:
    """The residual stream ``x + y * gate`` alone; see :func:`residual_norm`."""
    if not runs_fused(x_BSC, y_BSC, gate):
        return reference.gated_residual(x_BSC, y_BSC, gate)
    return _launch(x_BSC, y_BSC, gate, normalise=False)[0]


def _launch(
    x_BSC: Tensor, y_BSC: Tensor | None, gate: Tensor | None, weight_C: Tensor | None = None,
    bias_C: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = 0.0,
    normalise: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    batch, tokens, channels = x_BSC.shape
    x_BSC = x_BSC.contiguous()
    y_BSC = None if y_BSC is None else y_BSC.contiguous()
    stream = x_BSC if y_BSC is None else torch.empty_like(x_BSC)
    normed = torch.empty_like(x_BSC) if normalise else None
    strides = [stride for part in (gate, scale, shift) for stride in _strides(part)]
    block = triton.next_power_of_2(channels)
    with launching_on(x_BSC):
        _residual_norm_kernel[batch * tokens,](
            x_BSC, y_BSC, gate, weight_C, bias_C, scale, shift, stream, normed, tokens, eps, *strides,
            CHANNELS=channels, BLOCK=block, num_warps=warps_for(block),
        )  # fmt: skip
    return stream, normed


def runs_fused(*tensors: Tensor | None) -> bool:
    """Whether a kernel computes a call: nothing wants a gradient, and all lies on one GPU, or is interpreted."""
    given = [x for x in tensors if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return False
    if any(x.stride(-1) != 1 or x.device != given[0].device for x in given):
        return False
    # In bfloat16 the interpreter computes wrongly.
    return given[0].is_cuda or (interpreted() and given[0].dtype is not torch.bfloat16)


def warps_for(block: int) -> int:
    """Warps for a row of this many elements: some sixteen bytes a thread and load."""
    return max(1, min(16, block // 512))


def _strides(part: Tensor | None) -> tuple[int, int]:
    """Steps from one batch entry and one token to the next; none along what is shared."""
    if part is None:
        return 0, 0
    return part.stride(0) if part.shape[0] > 1 else 0, part.stride(1) if part.shape[1] > 1 else 0
