"""From where an attention stands, and what it attends over, to the blocks that are computed."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from radial.plans.block_plan import BlockPlan
from radial.plans.block_runs import check_block_size, count_blocks
from radial.plans.block_tokens import blocks_beside, nearest_blocks
from radial.plans.layout import Layout
from radial.plans.pattern import RadialPattern
from radial_kernels.block_sparse import BlockLists, select_blocks


@dataclass(frozen=True)
class Site:
    """Where an attention stands.

    Attributes:
        layout: of the queries and of the keys.
        layer, step: counted from 0; a planner that does not read content is asked once for all of them.
        branch: of guidance, as the pipeline names it: ``cond``, ``uncond``; nothing where it names none.
        device: where the lists are wanted.
    """

    layout: Layout
    layer: int
    step: int
    branch: str
    device: torch.device


class Planner(Protocol):
    """Makes lists.

    Attributes:
        reads_content: whether they depend on the queries and keys, and so are asked for at every layer and step.
            Others are asked once for each layout, and their lists enter compiled blocks.
    """

    @property
    def reads_content(self) -> bool: ...

    def lists(self, site: Site, q_BSHD: Tensor | None, k_BSHD: Tensor | None) -> BlockLists:
        """The blocks to compute; of content that is read, one plan for all, or one a batch entry or head."""


@dataclass(frozen=True)
class StaticPlanner:
    """The plan of a clip's geometry alone, as :meth:`~radial.plans.block_plan.BlockPlan.build` makes it."""

    pattern: RadialPattern = field(default_factory=RadialPattern)
    block_size: int = 128
    reads_content: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_block_size(self.block_size)

    def lists(self, site: Site, q_BSHD: Tensor | None = None, k_BSHD: Tensor | None = None) -> BlockPlan:
        """The plan of a site's layout."""
        return _plan_on(site.layout, self.pattern, self.block_size, site.device)


@dataclass(frozen=True)
class AdaptivePlanner:
    """Half of its blocks by the clip's geometry, nearest first; the other half by content, for each head.

    Geometry alone misses what a clip repeats far away, content alone is unsteady from layer to layer; each makes up for
    the other.

    Attributes:
        density: share of all blocks that is kept, about; other tokens than the clip's are always kept.
        sink_frames: leading frames that all attend to.
    """

    density: float
    block_size: int = 128
    sink_frames: int = 1
    reads_content: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_block_size(self.block_size)

    def core(self, layout: Layout) -> Tensor:
        """The half by geometry: bool ``[rows, columns]``, on the CPU."""
        rows = np.arange(count_blocks(layout, self.block_size), dtype=np.int32)
        half = nearest_blocks(layout, self.block_size, self.density / 2, self.sink_frames, rows)
        return torch.from_numpy(np.concatenate(list(half)))

    def lists(self, site: Site, q_BSHD: Tensor | None = None, k_BSHD: Tensor | None = None) -> BlockLists:
        """The blocks of each batch entry and head."""
        assert q_BSHD is not None
        assert k_BSHD is not None
        core_RC, extra = _core_on(site.layout, self, site.device)
        return select_blocks(q_BSHD, k_BSHD, core_RC, extra, block_size=self.block_size)


@functools.lru_cache(maxsize=8)
def _core_on(layout: Layout, planner: AdaptivePlanner, device: torch.device) -> tuple[Tensor, int]:
    """The half by geometry, and how many blocks a row keeps beside it, as sinks may be more than the half."""
    core_RC = planner.core(layout)
    return core_RC.to(device), blocks_beside(planner.density, len(core_RC), int(core_RC.sum(1).min()))


@functools.lru_cache(maxsize=32)  # packed clips have a layout each
def _plan_on(layout: Layout, pattern: RadialPattern, block_size: int, device: torch.device) -> BlockPlan:
    return BlockPlan.build(layout, pattern, block_size).to(device)
