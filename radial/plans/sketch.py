"""What a plan looks like, from a sample of its rows: its work and memory are bounded, however many blocks it has."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radial.plans.block_runs import check_block_size, count_blocks, kept_columns
from radial.plans.block_tokens import blocks_beside, nearest_blocks
from radial.plans.layout import Layout, TokenGrid, as_layout
from radial.plans.pattern import RadialPattern

MAX_ROWS = 2048  # looked at; smaller plans are looked at whole
_BINS = 900
_GOLDEN = 0.618033988749895


@dataclass(frozen=True, eq=False)
class PlanSketch:
    """The kept blocks of a clip's attention, ``rows`` blocks a side.

    Attributes:
        rule: by which, in words.
        density: share of blocks that are kept; of the sampled rows, which is within a hundredth of the whole.
        shade: float32 ``[sampled rows, bins]``, the share of blocks kept in each of ``bins`` parts of a row.
    """

    layout: Layout
    rule: str
    block_size: int
    rows: int
    density: float
    shade: NDArray[np.float32] = field(repr=False)

    @staticmethod
    def of(clip: TokenGrid | Layout, pattern: RadialPattern, block_size: int) -> PlanSketch:
        """Sketch a plan as :meth:`radial.plans.block_plan.BlockPlan.build` makes it.

        Raises:
            RequestError: ``block_size`` is none that the kernels have, or leaves too many blocks.
        """
        check_block_size(block_size)
        layout = as_layout(clip)
        blocks = count_blocks(layout, block_size)
        bins, bin_of, widths = _bins(blocks)
        shade, kept = [], 0
        for counts, columns in kept_columns(layout, pattern, block_size, _sample(blocks)):
            kept += int(counts.sum())
            places = np.repeat(np.arange(len(counts)) * bins, counts) + bin_of[columns]
            filled = np.bincount(places, minlength=len(counts) * bins).reshape(len(counts), bins)
            shade.append((filled / widths).astype(np.float32))
        found = np.concatenate(shade)
        rule = f"decay {pattern.decay:g}   {pattern.variant} rule"
        return PlanSketch(layout, rule, block_size, blocks, kept / (len(found) * blocks), found)

    @staticmethod
    def of_adaptive(clip: TokenGrid | Layout, density: float, sink_frames: int, block_size: int) -> PlanSketch:
        """Sketch adaptive attention: of its blocks, the half that geometry decides.

        Raises:
            RequestError: likewise.
        """
        check_block_size(block_size)
        layout = as_layout(clip)
        blocks = count_blocks(layout, block_size)
        bins, bin_of, widths = _bins(blocks)
        starts = np.searchsorted(bin_of, np.arange(bins))
        shade, counts = [], []
        for kept in nearest_blocks(layout, block_size, density / 2, sink_frames, _sample(blocks)):
            shade.append(np.add.reduceat(kept, starts, 1, np.float32) / widths)
            counts.append(kept.sum(1))
        core = np.concatenate(counts)
        kept_share = np.minimum(core + blocks_beside(density, blocks, int(core.min())), blocks).mean() / blocks
        found = np.concatenate(shade).astype(np.float32)
        rule = "half by place, as drawn, half by content"
        return PlanSketch(layout, rule, block_size, blocks, float(kept_share), found)


def _bins(blocks: int) -> tuple[int, NDArray[np.int32], NDArray[np.int64]]:
    """Parts of a row: how many, that of each block, and how many blocks each has."""
    bins = min(blocks, _BINS)
    bin_of = (np.arange(blocks, dtype=np.int64) * bins // blocks).astype(np.int32)
    return bins, bin_of, np.bincount(bin_of, minlength=bins)


def _sample(blocks: int) -> NDArray[np.int32]:
    """All rows, or one out of each of :data:`MAX_ROWS` equal parts, at places that share no period with the frames."""
    if blocks <= MAX_ROWS:
        return np.arange(blocks, dtype=np.int32)
    parts = np.arange(MAX_ROWS)
    return np.unique(((parts + parts * _GOLDEN % 1) * (blocks / MAX_ROWS)).astype(np.int32))
