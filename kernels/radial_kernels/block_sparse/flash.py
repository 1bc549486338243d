"""FlashAttention-4's block-sparse forward kernel, when flash-attn-4 is installed; sm90.

Its backward kernel has no deterministic order for block lists there, so this backend computes no gradients.

It reads one padded list a row, ``[B or 1, H or 1, R, widest row]``, so the lists are padded anew on every call: a few
small kernels and a wait for the width, which no CUDA graph can hold.

Shapes: B batch, S query length, T key length, H heads, D head dim, R rows or columns of blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # tokens a block, the only size driven here


def attention(
    q_BSHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, row_offsets: Tensor, column_indices: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs ``[B, S, H, D]`` and log-sum-exps ``[B, H, S]``."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import flash_attn_func

    lists = BlockSparseTensorsTorch(*_whole_blocks(row_offsets, column_indices), block_size=(BLOCK, BLOCK))
    out, lse = flash_attn_func(q_BSHD, k_BTHD, v_BTHD, softmax_scale=scale, block_sparse_tensors=lists, return_lse=True)
    return out, lse


def _whole_blocks(offsets: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts and indices of the blocks that need a mask within, which are none, and of the whole ones."""
    counts, padded = pad_lists(offsets, indices)
    return torch.zeros_like(counts), torch.zeros_like(padded[..., :1]), counts, padded


def pad_lists(offsets: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, ``[B or 1, H or 1, R]``, and which, filled up with zeros to the widest row."""
    plans = {1: offsets[None, None], 2: offsets[:, None]}.get(offsets.ndim, offsets)
    counts = plans.diff()
    width = max(1, int(counts.max()))
    slots = torch.arange(width, device=offsets.device)
    places = (plans[..., :-1, None] + slots).clamp(max=max(0, len(indices) - 1))
    kept = slots < counts[..., None]
    padded = indices[places.long()] if len(indices) else torch.zeros_like(places)
    return counts.int().contiguous(), torch.where(kept, padded, 0).int().contiguous()
