"""Blocks of keys chosen by what queries and keys hold.

Shapes: B batch, S query length, T key length, H heads, D head dim, R rows of query blocks, C columns of key blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from radial_kernels.block_sparse.lists import BlockLists
from radial_kernels.block_sparse.tail.means import block_sums

_SCORES = 1 << 27  # that are held at a time


@torch.no_grad()
def select_blocks(
    q_BSHD: Tensor, k_BTHD: Tensor, core_RC: Tensor, extra: int, *, block_size: int = 128, scale: float | None = None
) -> BlockLists:
    """The blocks of a core and, for each batch entry, head and block of queries, those beside it that weigh most.

    What a block of keys weighs for a block of queries is estimated from means: with q the mean query, m the mean key
    and s the variance of the keys along each dimension, the logarithm of the mean of exp(scale q k) is about scale q m
    + (scale q)^2 s / 2. It routes only: what is chosen is attended exactly.

    Args:
        core_RC: bool, blocks that all keep.
        extra: how many blocks a row keeps beside them; a row with fewer left keeps all.
        scale: factor on the logits; ``1 / sqrt(D)`` when left out.

    Returns:
        One plan a batch entry and head, all rows of the same length but for what the core holds.

    Raises:
        ValueError: the core is of other blocks than the queries and keys have.
    """
    batch, queries, heads, width = q_BSHD.shape
    keys = k_BTHD.shape[1]
    rows, columns = -(-queries // block_size), -(-keys // block_size)
    if core_RC.shape != (rows, columns):
        raise ValueError(f"core is {tuple(core_RC.shape)}, where there are {rows} and {columns} blocks")
    extra = min(extra, columns)
    if extra < 1:
        return BlockLists.of_mask(core_RC[None, None], block_size)
    factor = 1 / math.sqrt(width) if scale is None else scale
    mean_q_BRHD = block_sums(q_BSHD, block_size) / _counts(queries, rows, block_size, q_BSHD.device)
    counts_C11 = _counts(keys, columns, block_size, k_BTHD.device)
    sums_BCHD = block_sums(k_BTHD, block_size)
    squares_BCHD = block_sums(k_BTHD.to(sums_BCHD.dtype).square(), block_size)
    mean_k_BCHD = sums_BCHD / counts_C11
    variance_BCHD = (squares_BCHD / counts_C11 - mean_k_BCHD.square()).clamp_(min=0)
    kept_BHRC = core_RC.expand(batch, heads, rows, columns).clone()
    at_once = max(1, _SCORES // (batch * rows * columns))
    for first in range(0, heads, at_once):
        some = slice(first, first + at_once)
        q_BHRD = factor * mean_q_BRHD[:, :, some].transpose(1, 2)
        m_BHDC, s_BHDC = (x[:, :, some].permute(0, 2, 3, 1) for x in (mean_k_BCHD, variance_BCHD))
        weight_BHRC = q_BHRD @ m_BHDC + 0.5 * (q_BHRD.square() @ s_BHDC)
        chosen = weight_BHRC.masked_fill_(core_RC, -math.inf).topk(extra, sorted=False).indices
        kept_BHRC[:, some].scatter_(-1, chosen, True)
    return BlockLists.of_mask(kept_BHRC, block_size)


def _counts(length: int, blocks: int, block_size: int, device: torch.device) -> Tensor:
    """Tokens in each block, ``[blocks, 1, 1]``."""
    return (length - block_size * torch.arange(blocks, device=device)).clamp(max=block_size)[:, None, None]
