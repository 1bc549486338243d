"""The attention seam: planners and policies that are not ours, guidance branches, compiled blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from test_attention import KEEP_ALL, SPARSE, run
from torch import Tensor
from torch._dynamo.utils import counters

import radial
from radial import ModelError, Schedule
from radial.plans.planner import Site, StaticPlanner
from radial_kernels.block_sparse import BlockLists

BLOCK = 16


@dataclass
class NearestContent:
    """For each batch entry and head, the key blocks whose mean is most like that of a block of queries."""

    kept: int
    sites: list[Site] = field(default_factory=list)
    reads_content = True

    def lists(self, site: Site, q_BSHD: Tensor | None, k_BSHD: Tensor | None) -> BlockLists:
        assert q_BSHD is not None
        assert k_BSHD is not None
        self.sites.append(site)
        q, k = (x.unflatten(1, (-1, BLOCK)).mean(2).transpose(1, 2) for x in (q_BSHD, k_BSHD))
        likeness = q @ k.mT
        best = likeness.topk(self.kept, -1).indices
        return BlockLists.of_mask(torch.zeros(likeness.shape).scatter(-1, best, 1.0) > 0, BLOCK)


@dataclass(frozen=True)
class Table:
    """A policy from a list of choices by layer."""

    choices: tuple[int, ...]

    def choose(self, layer: int, step: int, num_steps: int) -> int:
        return self.choices[layer] if step < num_steps - 1 else 0


def test_a_planner_reads_content_at_every_site(wan: Any) -> None:
    stock, whole, few = run(wan), NearestContent(kept=5), NearestContent(kept=2)
    with radial.apply(wan, planners=[whole], policy=Table((0, 1, 1))) as installed:
        assert torch.allclose(run(wan), stock, atol=2e-4)  # 5 of 5 blocks
        assert installed.computed_share == pytest.approx(1.0)
    seen = [(site.layer, site.step, site.branch) for site in whole.sites]
    assert seen == [(layer, step, branch) for step in (0, 1) for branch in ("cond", "uncond") for layer in (1, 2)]
    assert {site.layout.grid.frames for site in whole.sites} == {5}
    with radial.apply(wan, planners=[few], policy=Table((0, 1, 1))) as installed:
        assert not torch.allclose(run(wan), stock, atol=1e-3)
    # Two layers of three, two steps of three, two blocks of five.
    assert installed.computed_share == pytest.approx(1 - 4 / 9 * (1 - 2 / 5))
    assert installed.plan is None


def test_a_policy_chooses_among_planners(wan: Any) -> None:
    dense, sparse = StaticPlanner(KEEP_ALL, BLOCK), StaticPlanner(SPARSE, BLOCK)
    with radial.apply(wan, pattern=SPARSE, block_size=BLOCK, schedule=Schedule(dense_last_steps=1)):
        wanted = run(wan)
    with radial.apply(wan, planners=[dense, sparse], policy=Table((2, 2, 2))):
        assert torch.equal(run(wan), wanted)
    stock = run(wan)
    with radial.apply(wan, planners=[dense, sparse], policy=Table((1, 1, 0))) as installed:
        assert torch.allclose(run(wan), stock, atol=2e-4)
        assert installed.computed_share == 1.0
    with (
        radial.apply(wan, planners=[dense], policy=Table((1, 1, 2))),
        pytest.raises(ModelError, match="chose planner 2 of 1 for layer 2"),
    ):
        run(wan)
    assert torch.equal(run(wan), stock)


def test_calls_are_known_by_their_branch_of_guidance(wan: Any) -> None:
    """What is kept of one branch another does not see, and a run's end forgets it."""
    states: dict[str, Any] = {}

    class Noting(StaticPlanner):
        def lists(self, site: Site, *content: Any) -> Any:
            states.setdefault(site.branch, []).append(installed.context.state)
            return super().lists(site)

    with radial.apply(wan, planners=[Noting(SPARSE, BLOCK)]) as installed:
        run(wan)
        assert {branch: len(found) for branch, found in states.items()} == {"cond": 1, "uncond": 1}
        assert states["cond"][0] is not states["uncond"][0]
        run(wan)
        assert {branch: len(found) for branch, found in states.items() if branch} == {"cond": 2, "uncond": 2}
        assert installed.computed_share < 1  # which is of all runs


@pytest.mark.parametrize(
    ("dynamic", "backend", "graphs"),
    [(True, "aot_eager", [2, 2, 2, 2]), pytest.param(None, "eager", [2, 4, 4, 4], marks=pytest.mark.slow)],
)
def test_another_length_or_step_compiles_nothing(
    wan: Any, dynamic: bool | None, backend: str, graphs: list[int]
) -> None:
    """Blocks compile once dense and once radial. Left to itself, torch.compile does so again at the second length, for
    all that come after it: how often is decided before a backend makes anything of a graph."""
    torch._dynamo.reset()
    counters.clear()
    wan.transformer.compile_repeated_blocks(fullgraph=True, dynamic=dynamic, backend=backend)
    counted = []
    schedule = Schedule(dense_layers=1, dense_steps=1)
    with radial.apply(wan, pattern=SPARSE, block_size=BLOCK, schedule=schedule, far_field="mean"):
        for frames, steps in ((17, 3), (29, 5), (25, 2), (21, 4)):
            run(wan, frames, steps)
            counted.append(counters["stats"]["unique_graphs"])
    assert counted == graphs
