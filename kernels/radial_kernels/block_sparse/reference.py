"""The formula: dense logits, masked, in at least single precision. For tests and small inputs.

Shapes: B batch, S query length, T key length, H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q_BSHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """softmax(q k' * scale + mask) v and its log-sum-exp ``[B, H, S]``, with the mask spelled out.

    A row without keys gives zeros, and minus infinity.
    """
    wide = torch.promote_types(q_BSHD.dtype, torch.float32)
    logits_BHST = torch.einsum("bshd,bthd->bhst", q_BSHD.to(wide), k_BTHD.to(wide)) * scale
    mask_ST = token_mask(row_offsets, column_indices, q_BSHD.shape[1], k_BTHD.shape[1], block_size)
    logits_BHST = logits_BHST.masked_fill(~mask_ST, float("-inf"))
    weights_BHST = logits_BHST.softmax(-1).nan_to_num(0.0)
    out_BSHD = torch.einsum("bhst,bthd->bshd", weights_BHST, v_BTHD.to(wide)).to(q_BSHD.dtype)
    return out_BSHD.contiguous(), logits_BHST.logsumexp(-1)


def token_mask(
    row_offsets: Tensor, column_indices: Tensor, query_length: int, key_length: int, block_size: int
) -> Tensor:
    """Bool ``[S, T]``: the block lists spread out to tokens."""
    rows, columns = len(row_offsets) - 1, -(-key_length // block_size)
    mask = torch.zeros(rows, columns, dtype=torch.bool, device=row_offsets.device)
    start = int(row_offsets[0])
    counts = row_offsets.diff().long()
    row = torch.arange(rows, device=mask.device).repeat_interleave(counts)
    mask[row, column_indices[start : start + len(row)].long()] = True
    spread = mask.repeat_interleave(block_size, 0).repeat_interleave(block_size, 1)
    return spread[:query_length, :key_length]
