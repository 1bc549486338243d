"""Checks, the choice of a backend, and the registration with torch. The only public module of this operator.

    api ── reference   the formula
        ├─ gather      any device, differentiable
        └─ forward     Triton

Shapes: B batch, S query length, T key length, H heads, D head dim.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

import torch
from torch import Tensor

from radial_kernels.block_sparse import gather, reference

BACKENDS = ("auto", "reference", "gather", "triton")
MAX_HEAD_DIM = 256
BLOCK_SIZES = (16, 32, 64, 128, 256)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    *,
    block_size: int = 128,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention in which every block of queries sees only its own list of key blocks.

    Args:
        q: queries ``[B, S, H, D]``; any strides with a contiguous last dimension. S and T need not be multiples of
            the block size: the last block is ragged.
        k: keys ``[B, T, H, D]``, v: values of the same shape.
        row_offsets: int32 ``[ceil(S / block_size) + 1]``; row r attends to the key blocks
            ``column_indices[row_offsets[r] : row_offsets[r + 1]]``, which ascend without repeats.
        column_indices: int32 key blocks, each below ``ceil(T / block_size)``. Not checked on every
            call: pass lists of your own making through :func:`check_lists` once.
        scale: factor on the logits; ``1 / sqrt(D)`` when left out.
        backend: ``auto`` takes ``triton`` on a GPU and ``gather`` elsewhere. A named backend never falls back.

    Returns:
        ``[B, S, H, D]``. A row without keys gives zeros. Gradients flow to q, k and v; whatever the backend, they
        are computed by gathering.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.
    """
    _check(q, k, v, row_offsets, column_indices, block_size)
    chosen = choose_backend(q, backend)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if not math.isfinite(factor):
        raise ValueError(f"scale must be finite, not {factor}")
    return torch.ops.radial.block_sparse_attention(q, k, v, row_offsets, column_indices, block_size, factor, chosen)


def choose_backend(q: Tensor, backend: str = "auto") -> str:
    """The backend that will run, or why the named one cannot."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; the backends are {', '.join(BACKENDS)}")
    can_triton = (q.is_cuda or _interpreted()) and importlib.util.find_spec("triton") is not None
    if backend == "auto":
        return "triton" if can_triton and q.is_cuda else "gather"
    if backend == "triton" and not can_triton:
        raise ValueError(f"backend triton needs a GPU and the triton package, and q is on {q.device}; use gather")
    return backend


def check_lists(row_offsets: Tensor, column_indices: Tensor, key_length: int, block_size: int) -> None:
    """Check a plan's lists once: offsets that grow, indices in range and ascending within each row."""
    columns = -(-key_length // block_size)
    if row_offsets[0] != 0 or row_offsets[-1] != len(column_indices) or (row_offsets.diff() < 0).any():
        raise ValueError("row_offsets must start at 0, never fall, and end at the number of column indices")
    if len(column_indices) and (column_indices.min() < 0 or column_indices.max() >= columns):
        raise ValueError(f"column_indices must lie in 0..{columns - 1} for {key_length} keys in blocks of {block_size}")
    falls = column_indices.diff() <= 0
    row_starts = row_offsets[1:-1].long()
    inner = row_starts[(row_starts > 0) & (row_starts < len(column_indices))] - 1
    falls[inner] = False
    if falls.any():
        raise ValueError("column_indices must ascend without repeats within each row")


def _check(q: Tensor, k: Tensor, v: Tensor, row_offsets: Tensor, column_indices: Tensor, block_size: int) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(f"q, k and v must be [B, S, H, D] and k like v, not {_shapes(q, k, v)}")
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q and k must agree in batch, heads and head dim: {_shapes(q, k, v)}")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device == row_offsets.device == column_indices.device:
        raise ValueError(f"all inputs must be on one device; q is on {q.device}, the lists on {row_offsets.device}")
    if q.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(f"head dim must be at most {MAX_HEAD_DIM}, not {q.shape[-1]}")
    if any(x.shape[-1] > 1 and x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError("q, k and v must be contiguous in their last dimension; call .contiguous() on them")
    if row_offsets.dtype != torch.int32 or column_indices.dtype != torch.int32:
        raise ValueError(f"the lists must be int32, not {row_offsets.dtype} and {column_indices.dtype}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be 16, 32, 64, 128 or 256, not {block_size}")
    rows = -(-q.shape[1] // block_size)
    if row_offsets.shape != (rows + 1,) or column_indices.ndim != 1:
        raise ValueError(
            f"{q.shape[1]} queries in blocks of {block_size} need {rows + 1} row_offsets, "
            f"not {tuple(row_offsets.shape)}"
        )


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors)


def _interpreted() -> bool:
    """Triton's interpreter runs kernels on the CPU, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.library.custom_op("radial::block_sparse_attention", mutates_args=())
def _attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
    backend: str,
) -> Tensor:
    arguments = (q, k, v, row_offsets, column_indices, block_size, scale)
    match backend:
        case "reference":
            return reference.attention(*arguments).contiguous()
        case "gather":
            return gather.attention(*arguments)
        case "triton":
            from radial_kernels.block_sparse import forward

            return forward.attention(*arguments)
    raise ValueError(f"unknown backend {backend!r}")


@_attention_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, row_offsets: Tensor, column_indices: Tensor,
    block_size: int, scale: float, backend: str,
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape)


@torch.library.custom_op("radial::block_sparse_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return gather.backward(grad, q, k, v, row_offsets, column_indices, block_size, scale)


@_backward_op.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_offsets: Tensor, column_indices: Tensor,
    block_size: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.radial.block_sparse_attention_backward(grad, *ctx.saved_tensors, *ctx.options[:2])
    return (*gradients, None, None, None, None, None)


_attention_op.register_autograd(_backward, setup_context=_save)
