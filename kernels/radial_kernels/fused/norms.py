"""Residual, layer norm and modulation of a transformer block in one kernel.

Shapes: B batch, S tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from radial_kernels.fused import reference
from radial_kernels.triton_runtime import HAS_TRITON, interpreted, launching_on, next_power_of_2


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
    block = next_power_of_2(channels)
    from radial_kernels.fused.kernels import residual_norm_kernel

    with launching_on(x_BSC):
        residual_norm_kernel[batch * tokens,](
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
    return (HAS_TRITON and given[0].is_cuda) or (interpreted() and given[0].dtype is not torch.bfloat16)


def warps_for(block: int) -> int:
    """Warps for a row of this many elements: some sixteen bytes a thread and load."""
    return max(1, min(16, block // 512))


def _strides(part: Tensor | None) -> tuple[int, int]:
    """Steps from one batch entry and one token to the next; none along what is shared."""
    if part is None:
        return 0, 0
    return part.stride(0) if part.shape[0] > 1 else 0, part.stride(1) if part.shape[1] > 1 else 0
