"""Attention over lists of blocks: the inputs are looked at here, and computed on by the operator.

    api ── operator ─┬─ reference            the formula
                     ├─ gather               any device, differentiable
                     ├─ forward, backward    Triton
                     ├─ hopper               Gluon, sm90
                     ├─ flash                flash-attn-4, where it is installed
                     └─ tail                 what the lists leave out, as means; after any of them

Shapes: B batch, S query length, T key length, H heads, D head dim, R rows of query blocks.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from radial_kernels.block_sparse import operator  # noqa: F401  registers torch.ops.radial
from radial_kernels.block_sparse.lists import BlockLists
from radial_kernels.block_sparse.tail import operator as tail_operator  # noqa: F401  likewise
from radial_kernels.block_sparse.tail.lists import PooledLists

MAX_HEAD_DIM = 256
BLOCK_SIZES = (16, 32, 64, 128, 256)


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, *, scale: float | None = None, backend: str = "auto",
    eight_bit: bool = False, tail: PooledLists | None = None, return_lse: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, *, scale: float | None = None, backend: str = "auto",
    eight_bit: bool = False, tail: PooledLists | None = None, return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def attention(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, *, scale: float | None = None, backend: str = "auto",
    eight_bit: bool = False, tail: PooledLists | None = None, return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Attention in which every block of queries sees only its own list of key blocks.

    Args:
        q: queries ``[B, S, H, D]``; any strides with a contiguous last dimension. S and T need not be multiples of
            the block size: the last block is ragged.
        k: keys ``[B, T, H, D]``, v: values of the same shape.
        lists: which blocks of keys each block of queries attends to. Their indices are not looked at on every call:
            have lists of your own making looked through once, by :meth:`BlockLists.check`.
        scale: factor on the logits; ``1 / sqrt(D)`` when left out.
        backend: ``auto`` takes the fastest that can run: ``hopper`` on compute capability 9.0 (fp16 and bf16, head
            dims 64 and 128, blocks of 128), ``triton`` on other GPUs or inputs, ``gather`` elsewhere. ``flash``, which
            needs flash-attn-4, only by name. A named backend never falls back.
        eight_bit: compute logits in int8 and weighted values in e4m3 (in 16 bits before compute capability 8.9), with
            ``triton`` or ``hopper``. On activations of the bundled model the output is off by 2.1 % (2.6 % at worst;
            normal random inputs: 4 %). No gradients. Pays at head dim 128.
        tail: the far field: blocks that the lists leave out, attended in the same softmax as one mean key and one mean
            value each, with the logarithm of the number of keys in the mean added to its logit; see
            :meth:`PooledLists.complement`. With every backend; the kernels for it are Triton's where the backend is not
            ``gather`` or ``reference``.
        return_lse: also return the log-sum-exp of the scaled logits, natural, float32 ``[B, H, S]``.

    Returns:
        ``[B, S, H, D]``, with the log-sum-exp if asked for. A row without keys gives zeros, and minus infinity.
        Both are differentiable in q, k and v; gradients are deterministic.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.
    """
    _check_inputs(q, k, v, lists.block_size)
    _check_lists(q, k, lists)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if not math.isfinite(factor):
        raise ValueError(f"scale must be finite, not {factor}")
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    by_rows = (lists.row_offsets, lists.column_indices)
    if lists.key_ends is not None and (eight_bit or tail is not None):
        raise ValueError("sequences that lie one after the other have no far field, and none of them in 8 bit")
    if eight_bit:
        _check_eight_bit(lists.block_size, needs_grad)
    if backend == "flash" and needs_grad:
        raise ValueError("backend flash has no deterministic gradients; train with auto, hopper, triton or gather")
    by_columns = (lists.column_offsets, lists.row_indices, lists.column_order)
    if tail is not None:
        _check_tail(q, k, lists, tail)
        out, lse, _, _ = torch.ops.radial.block_sparse_attention_with_tail(
            q, k, v, *by_rows, *by_columns, tail.bits, tail.row_offsets, tail.word_indices, tail.column_offsets,
            tail.row_indices, tail.counts, tail.order, tail.spans, lists.block_size, factor, backend, eight_bit,
        )  # fmt: skip
    elif eight_bit:
        out, lse = torch.ops.radial.block_sparse_attention_eight_bit(
            q, k, v, *by_rows, lists.block_size, factor, backend, return_lse
        )
    else:
        out, lse = torch.ops.radial.block_sparse_attention(
            q,
            k,
            v,
            *by_rows,
            *by_columns,
            lists.block_size,
            factor,
            backend,
            return_lse or needs_grad,
            lists.key_ends,
        )
    return (out, lse) if return_lse else out


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, block_size: int) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(f"q, k and v must be [B, S, H, D] and k like v, not {_shapes(q, k, v)}")
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q and k must agree in batch, heads and head dim: {_shapes(q, k, v)}")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"q, k and v must not be empty: {_shapes(q, k, v)}")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k and v must share one floating dtype, not {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device, not {q.device}, {k.device}, {v.device}")
    if q.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(f"head dim must be at most {MAX_HEAD_DIM}, not {q.shape[-1]}")
    if any(x.shape[-1] > 1 and x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError("q, k and v must be contiguous in their last dimension; call .contiguous() on them")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be 16, 32, 64, 128 or 256, not {block_size}")


def _check_lists(q: Tensor, k: Tensor, lists: BlockLists) -> None:
    offsets, indices, block_size = lists.row_offsets, lists.column_indices, lists.block_size
    if offsets.dtype != torch.int32 or indices.dtype != torch.int32:
        raise ValueError(f"the lists must be int32, not {offsets.dtype} and {indices.dtype}")
    if not q.device == offsets.device == indices.device:
        raise ValueError(f"all inputs must be on one device; q is on {q.device}, the lists on {offsets.device}")
    rows, columns = -(-q.shape[1] // block_size), -(-k.shape[1] // block_size)
    batch, _, heads, _ = q.shape
    plans = tuple(offsets.shape[:-1])
    shared = len(plans) < 3 and all(n in (1, want) for n, want in zip(plans, (batch, heads), strict=False))
    if offsets.ndim == 0 or offsets.shape[-1] != rows + 1 or indices.ndim != 1 or not shared:
        raise ValueError(
            f"{q.shape[1]} queries in blocks of {block_size} need {rows + 1} row_offsets, for all, for each of "
            f"{batch} batch entries or for each of {heads} heads, not {tuple(offsets.shape)}"
        )
    if (lists.column_offsets is None) != (lists.row_indices is None):
        raise ValueError("column_offsets and row_indices belong together: give both, or neither")
    wanted = {
        "column_offsets": (lists.column_offsets, (*plans, columns + 1)),
        "row_indices": (lists.row_indices, tuple(indices.shape)),
        "column_order": (lists.column_order, (columns,)),
        "key_ends": (lists.key_ends, (rows,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or tensor.dtype != torch.int32 or tensor.device != k.device:
            raise ValueError(
                f"{name} must be int32 {list(shape)} on {k.device}, "
                f"not {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )


def _check_tail(q: Tensor, k: Tensor, lists: BlockLists, tail: PooledLists) -> None:
    batch, _, heads, _ = q.shape
    plans = tuple(tail.bits.shape[:-2])
    shared = len(plans) < 3 and all(n in (1, want) for n, want in zip(plans, (batch, heads), strict=False))
    if (tail.rows, tail.key_length, tail.block_size) != (lists.rows, k.shape[1], lists.block_size) or not shared:
        raise ValueError(
            f"the far field is of {tail.key_length} keys and {tail.rows} rows of queries in blocks of "
            f"{tail.block_size}, with plans {list(plans)}; q, k and the lists need {k.shape[1]}, {lists.rows} and "
            f"{lists.block_size}, and plans for all, for {batch} batch entries or for {heads} heads"
        )
    if tail.bits.device != q.device:
        raise ValueError(f"all inputs must be on one device; q is on {q.device}, the far field on {tail.bits.device}")


def _check_eight_bit(block_size: int, needs_grad: bool) -> None:
    if block_size < 32:
        raise ValueError(f"eight_bit needs blocks of at least 32 tokens, not {block_size}")
    if needs_grad:
        raise ValueError("eight_bit has no gradients: train in full precision, or call under torch.no_grad()")


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors)
