"""Lists of kept blocks: their check, and their transpose.

One plan is ``row_offsets [R + 1]`` and ``column_indices [kept]``. Several plans lie one after another in
``column_indices``, with ``row_offsets`` of shape ``[B, R + 1]`` (one plan a batch entry) or ``[B or 1, H or 1, R + 1]``
(one a head); offsets count from the start of ``column_indices``.

Shapes: P plans, R rows of query blocks, C columns of key blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_lists(row_offsets: Tensor, column_indices: Tensor, key_length: int, block_size: int) -> None:
    """Check lists once: offsets that grow, indices in range and ascending without repeats within each row.

    Raises:
        ValueError: naming the rule that is broken.
    """
    columns = -(-key_length // block_size)
    starts, stops = row_offsets[..., :-1].flatten(), row_offsets[..., 1:].flatten()
    joined = len(starts) > 0 and starts[0] == 0 and stops[-1] == len(column_indices)
    if not joined or (stops < starts).any() or (starts[1:] != stops[:-1]).any():
        raise ValueError(
            "row_offsets must start at 0, never fall, and end at the number of column indices, one plan after another"
        )
    if len(column_indices) and (column_indices.min() < 0 or column_indices.max() >= columns):
        raise ValueError(f"column_indices must lie in 0..{columns - 1} for {key_length} keys in blocks of {block_size}")
    falls = column_indices.diff() <= 0
    row_starts = starts[1:].long()
    inner = row_starts[(row_starts > 0) & (row_starts < len(column_indices))] - 1
    falls[inner] = False
    if falls.any():
        raise ValueError("column_indices must ascend without repeats within each row")


def transpose_lists(row_offsets: Tensor, column_indices: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """The same blocks by columns: ``column_offsets [..., C + 1]`` and ``row_indices [kept]``, rows ascending.

    Runs on the lists' device and does not wait for it.
    """
    rows, plans = row_offsets.shape[-1] - 1, row_offsets[..., 0].numel()
    device = row_offsets.device
    counts = row_offsets.diff().flatten().long()
    row_of = torch.arange(plans * rows, device=device).repeat_interleave(counts, output_size=len(column_indices))
    column_of = row_of // rows * columns + column_indices
    sorted_columns, by_column = column_of.sort(stable=True)
    first = torch.arange(plans, device=device)[:, None] * columns + torch.arange(columns + 1, device=device)
    offsets = torch.searchsorted(sorted_columns, first, out_int32=True)
    return offsets.reshape(*row_offsets.shape[:-1], columns + 1), (row_of % rows)[by_column].to(torch.int32)


def plan_strides(offsets: Tensor) -> tuple[int, int]:
    """Elements from one batch entry's offsets to the next, and from one head's; 0 where they share a plan."""
    batch = offsets.stride(0) if offsets.ndim > 1 and offsets.shape[0] > 1 else 0
    head = offsets.stride(1) if offsets.ndim > 2 and offsets.shape[1] > 1 else 0
    return batch, head
