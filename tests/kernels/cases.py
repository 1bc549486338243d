"""Random plans and inputs, and the measure of error, for the kernels' tests."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_lists(
    query_length: int, key_length: int, block: int, density: float = 0.5, *, empty_rows: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """A random plan in which the last key block, ragged or not, is in every other row."""
    generator = torch.Generator().manual_seed(query_length * 31 + key_length)
    rows, columns = -(-query_length // block), -(-key_length // block)
    mask = torch.rand(rows, columns, generator=generator) < density
    mask[::2, -1] = True
    mask[1::2, 0] = True
    mask[list(empty_rows)] = False
    return lists_of(mask)


def lists_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of the kept blocks of masks ``[..., rows, columns]``, one plan after another."""
    counts = mask.sum(-1)
    ends = counts.flatten().cumsum(0).reshape(counts.shape)
    offsets = torch.cat([(ends - counts)[..., :1], ends], -1).to(torch.int32)
    return offsets.to(DEVICE), mask.nonzero()[:, -1].to(torch.int32).to(DEVICE)


def random_inputs(
    batch: int, query_length: int, key_length: int, heads: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(query_length + dim)
    q = torch.randn(batch, query_length, heads, dim, device=DEVICE, dtype=dtype)
    k, v = (torch.randn(batch, key_length, heads, dim, device=DEVICE, dtype=dtype) for _ in range(2))
    return q, k, v


def error(got: Tensor, want: Tensor) -> float:
    """Relative error in the norm; infinite for anything that is not a number."""
    if not got.isfinite().all():
        return float("inf")
    return ((got.double() - want).norm() / want.norm()).item()
