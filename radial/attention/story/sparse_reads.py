"""Which blocks of its cache a chunk reads when it does not read all of it: the radial rule, by the order of what is
seen, from the chunk's own last frame back in time. The first frame, what is pinned, and memory that is not whole
frames, are read always.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from radial.plans.block_plan import BlockPlan
from radial.plans.layout import TokenGrid
from radial.plans.pattern import RadialPattern
from radial.plans.story.memory import StoryPlan
from radial_kernels.block_sparse import BlockLists


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def sparse_lists(
    plan: StoryPlan, chunk: int, height: int, width: int, pattern: RadialPattern, block_size: int, device: torch.device
) -> BlockLists:
    """The lists of a chunk's queries, its frames from the last one back, over as many keys and those that it reads,
    from the newest back."""
    size, own = height * width, len(plan.frames_of(chunk))
    reads = plan.reads(chunk)[::-1]
    whole = own + sum(read.thinning == 1 and read.segment is None for read in reads)
    keys = own * size + sum(len(plan.tokens_of(read, height, width)) for read in reads)
    rows, columns = -(-own * size // block_size), -(-keys // block_size)
    radial = BlockPlan.build(TokenGrid(whole, height, width), replace(pattern, sink_frames=0), block_size)
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    starts = radial.row_offsets[: rows + 1].tolist()
    for row in range(rows):
        mask[row, radial.column_indices[starts[row] : starts[row + 1]].long()] = True
    mask[:, whole * size // block_size :] = True
    for place, read in enumerate(reads):
        if plan.is_read_whole(read):
            first = (own + place) * size
            mask[:, first // block_size : -(-(first + size) // block_size)] = True
    return BlockLists.of_mask(mask, block_size).check(keys).to(device)
