"""Linear layers whose product is of e4m3 numbers: a scale for every row of the input and of the weight.

Shapes: M rows of the input, K input features, N output features, C columns beside them.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from radial_kernels.fused import reference
from radial_kernels.fused.norms import runs_fused, warps_for
from radial_kernels.triton_runtime import launching_on, next_power_of_2


def _launch(x_MK: Tensor, first_MC: Tensor | None, out: Tensor, scale_M1: Tensor | None, gelu: bool) -> None:
    rows, features = out.shape
    block = next_power_of_2(features)
    from radial_kernels.fused.kernels import rows_kernel

    with launching_on(x_MK):
        rows_kernel[rows,](
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
