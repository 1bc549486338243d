"""Linear layers whose product is of e4m3 numbers: a scale for every row of the input and of the weight.

Shapes: M rows of the input, K input features, N output features, C columns beside them.
"""

from __future__ import annotations

from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from radial_kernels.block_sparse.portable.tiles import launching_on
from radial_kernels.fused import reference
from radial_kernels.fused.norms import runs_fused, warps_for

E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def _rows_kernel(
    x_ptr, first_ptr, out_ptr, scale_ptr, x_stride, first_stride,
    FEATURES: tl.constexpr, FIRST: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < FEATURES
    x = tl.load(x_ptr + row * x_stride + columns - FIRST, mask=inside & (columns >= FIRST), other=0.0).to(tl.float32)
    if GELU:  # with tanh, which is a sigmoid: x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3)))
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    if first_ptr is not None:
        x += tl.load(first_ptr + row * first_stride + columns, mask=columns < FIRST, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / E4M3_MAX
        tl.store(scale_ptr + row, scale)
        x = x / scale
    tl.store(out_ptr + row * FEATURES + columns, x.to(out_ptr.dtype.element_ty), mask=inside)


def _launch(x_MK: Tensor, first_MC: Tensor | None, out: Tensor, scale_M1: Tensor | None, gelu: bool) -> None:
    rows, features = out.shape
    block = triton.next_power_of_2(features)
    with launching_on(x_MK):
        _rows_kernel[rows,](
            x_MK, first_MC, out, scale_M1, x_MK.stride(0), 0 if first_MC is None else first_MC.stride(0),
            FEATURES=features, FIRST=features - x_MK.shape[1], GELU=gelu, BLOCK=block, num_warps=warps_for(block),
        )  # fmt: skip


def quantise_rows(x_MK: Tensor, gelu: bool = False, first_MC: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """e4m3 copies of a matrix's rows, or of their GELU (with tanh), and the factor ``[M, 1]`` that turns each back.

    Args:
        first_MC: columns that come before, which no GELU touches.
    """
    # The interpreter cuts e4m3 off instead of rounding, and older GPUs do not know it.
    if not runs_fused(x_MK, first_MC) or refuse_eight_bit(x_MK.device) is not None:
        return reference.quantise_rows(x_MK, gelu, first_MC)
    rows, features = x_MK.shape[0], x_MK.shape[1] + (0 if first_MC is None else first_MC.shape[1])
    out = torch.empty(rows, features, dtype=torch.float8_e4m3fn, device=x_MK.device)
    scale_M1 = torch.empty(rows, 1, dtype=torch.float32, device=x_MK.device)
    _launch(x_MK, first_MC, out, scale_M1, gelu)
    return out, scale_M1


def gelu_beside(x_MK: Tensor, first_MC: Tensor) -> Tensor:
    """The columns of ``first_MC`` and after them the GELU (with tanh) of those of ``x_MK``, ``[M, C + K]``."""
    if not runs_fused(x_MK, first_MC):
        return reference.gelu_beside(x_MK, first_MC)
    out = torch.empty(len(x_MK), first_MC.shape[1] + x_MK.shape[1], dtype=x_MK.dtype, device=x_MK.device)
    _launch(x_MK, first_MC, out, None, True)
    return out


class EightBitWeights(nn.Module):
    """A linear layer that keeps its weight in e4m3, with a scale for every row, and multiplies in its input's dtype.

    Half the memory of 16 bits on any device; the product takes a pass over the weight longer. The weight's numbers are
    kept as bytes: nobody should take them for the dtype that a model computes in, nor cast them. They are parameters,
    as offloading in groups leaves the buffers of a block on the GPU.
    """

    def __init__(self, rounded: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = rounded.shape
        self.dtype = dtype
        self.rounded = _fixed(rounded.view(torch.uint8))
        self.weight_scale = _fixed(scale)
        self.bias = None if bias is None else _fixed(bias)

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, device: torch.device | None = None) -> Self:
        """The same layer with its weight rounded, on ``device`` or where it is."""
        rounded, scale = quantise_rows(linear.weight.detach().to(device))
        bias = None if linear.bias is None else linear.bias.detach().to(device)
        return cls(rounded, scale, bias, linear.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight as it acts, in the dtype that it had: some models look at that."""
        return self._weight(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the dtype of the input."""
        return F.linear(x, self._weight(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def _weight(self, dtype: torch.dtype) -> Tensor:
        return self._e4m3.to(dtype).mul_(self.weight_scale.to(dtype))

    @property
    def _e4m3(self) -> Tensor:
        return self.rounded.view(torch.float8_e4m3fn)


class EightBitLinear(EightBitWeights):
    """The same, whose input is rounded to e4m3 too, row by row, as it comes.

    Where the device has no such products (see :func:`refuse_eight_bit`) it multiplies the rounded numbers in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the dtype of the input."""
        x_MK, scale_M1 = quantise_rows(x.reshape(-1, self.in_features))
        return self.multiply(x_MK, scale_M1, x.dtype).view(*x.shape[:-1], self.out_features)

    def multiply(self, x_MK: Tensor, scale_M1: Tensor, dtype: torch.dtype) -> Tensor:
        """The product of an input that :func:`quantise_rows` made, for several layers of one input, or after a GELU."""
        if x_MK.is_cuda:
            bias = None if self.bias is None else self.bias.to(dtype)
            return torch._scaled_mm(
                x_MK, self._e4m3.t(), scale_M1, self.weight_scale.t(), bias=bias, out_dtype=dtype, use_fast_accum=True
            )
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x_MK.float() * scale_M1, self._weight(torch.float32), bias).to(dtype)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def refuse_eight_bit(device: torch.device) -> str | None:
    """Why a device cannot multiply e4m3 numbers, if it cannot."""
    if device.type != "cuda":
        return f"{device} has no 8-bit products"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        return f"8-bit products need compute capability 8.9, and {device} has {major}.{minor}"
    return None
