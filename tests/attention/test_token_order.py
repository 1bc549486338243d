"""A clip's tokens in columns along time: the order, the plan token by token, transformers that see it, and those that
cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from family_cases import CASES
from test_attention import KEEP_ALL, run

import radial
from radial import ModelError, RadialPattern, RequestError, Schedule, TokenGrid
from radial.attention.positions import riflex
from radial.plans.block_plan import BlockPlan
from radial.plans.far_field import pool_rest
from radial.plans.layout import Layout
from radial.plans.sketch import PlanSketch
from radial.plans.token_order import in_columns, run_starts, token_order

GRIDS = [TokenGrid(20, 6, 6), TokenGrid(14, 5, 9), TokenGrid(6, 3, 2), TokenGrid(2, 3, 3), TokenGrid(1, 4, 4)]
PATTERNS = [
    RadialPattern(skip_width=16),
    RadialPattern(decay=0.1, sink_frames=0, skip_width=64),
    RadialPattern(variant="paper", sink_frames=2),
]


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_columns_hold_every_token_once(grid: TokenGrid, block: int) -> None:
    layout = in_columns(Layout.of(grid, before=3), block)
    assert layout.tile is not None
    assert np.prod(layout.tile) == block
    order = token_order(grid, layout.tile)
    assert sorted(order) == list(range(grid.tokens))
    assert sorted(order[: grid.tokens_per_frame]) == list(range(grid.tokens_per_frame))  # the first frame in front
    runs = np.diff(run_starts(grid, layout.tile)) if grid.frames > 1 else np.zeros(0)
    assert runs.sum() == grid.frames - 1
    assert np.ptp(runs) <= 1 if len(runs) else grid.frames == 1
    assert in_columns(layout, block) == layout


def test_a_block_is_long_in_time() -> None:
    order = token_order(TokenGrid(33, 8, 8), (8, 4, 4))
    for start in range(64, 33 * 64, 128):
        frame, place = np.divmod(order[start : start + 128], 64)
        assert len(set(frame)) == 8
        assert len(set(place)) == 16


def rule(layout: Layout, pattern: RadialPattern, block: int) -> np.ndarray:
    """The plan spelled out: every pair of tokens, then every pair of blocks."""
    grid, tokens = layout.grid, layout.tokens
    assert layout.tile is not None
    frame, place = np.divmod(token_order(grid, layout.tile), grid.tokens_per_frame)
    windows = np.array([pattern.window(d, grid.tokens_per_frame, block) for d in range(grid.frames)])
    pairs = np.abs(place[:, None] - place) <= windows[np.abs(frame[:, None] - frame)]
    pairs |= frame < pattern.sink_frames
    clip = slice(layout.before, layout.before + grid.tokens)
    whole, other = np.zeros((tokens, tokens), bool), np.ones(tokens, bool)
    whole[clip, clip], other[clip] = pairs, False
    blocks = [slice(start, start + block) for start in range(0, tokens, block)]
    kept = np.zeros((len(blocks), len(blocks)), bool)
    for r, row in enumerate(blocks):
        for c, column in enumerate(blocks):
            seen = whole[row, column].sum(0)
            any_, enough = (seen > 0).sum(), (3 * seen > len(whole[row, column])).sum()
            rule = 5 * enough > 3 * any_ if pattern.variant == "published" else any_ > 0
            kept[r, c] = rule or r == c or other[row].any() or other[column].any()
    return kept


@pytest.mark.parametrize("pattern", PATTERNS, ids=["published", "sparse", "paper"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_plan_is_the_rule_token_by_token(grid: TokenGrid, pattern: RadialPattern) -> None:
    for around in ({}, {"before": 13, "after": 7}):
        layout = in_columns(Layout.of(grid, **around), 16)
        plan = BlockPlan.build(layout, pattern, 16).check(layout.tokens)
        assert np.array_equal(plan.to_mask().numpy(), rule(layout, pattern, 16))
        assert PlanSketch.of(layout, pattern, 16).density == pytest.approx(plan.density)
        for far_field in ("mean", "pyramid"):
            tail = pool_rest(plan, layout, far_field)  # type: ignore[arg-type]
            assert tail is not None
            tail.check(plan)


def test_plans_of_both_orders_are_kept_apart() -> None:
    layout = Layout.of(TokenGrid(33, 8, 8))
    raster, columns = (BlockPlan.build(one, PATTERNS[0], 16) for one in (layout, in_columns(layout, 16)))
    assert raster.density != columns.density
    assert BlockPlan.build(layout, PATTERNS[0], 16) is raster


def test_a_pipeline_in_columns(wan: Any) -> None:
    """Dense it is stock; sparse it is something else; afterwards it is as it was. RIFLEx turns the same positions."""
    stock = run(wan, 33, 2)
    for arguments in ({"schedule": Schedule.dense()}, {"pattern": KEEP_ALL}):
        with radial.apply(wan, block_size=16, token_order="columns", **arguments):  # type: ignore[arg-type]
            assert torch.allclose(run(wan, 33, 2), stock, atol=2e-4)
    sparse = RadialPattern(decay=0.1, sink_frames=0, skip_width=64)
    with radial.apply(wan, pattern=sparse, block_size=16, token_order="columns") as installed:
        longer = run(wan, 97, 1)
        assert installed.plan is not None
        assert installed.computed_share == pytest.approx(installed.plan.density)
        assert installed.plan.density < 0.8
    assert not torch.allclose(longer, run(wan, 97, 1), atol=1e-4)
    assert torch.equal(run(wan, 33, 2), stock)
    with riflex([wan.transformer], 2.0):
        slowed = run(wan, 33, 2)
    columns = radial.apply(wan, block_size=16, token_order="columns", schedule=Schedule.dense())
    with columns, riflex([wan.transformer], 2.0):  # turned before they are put in columns, whichever came first
        assert torch.allclose(run(wan, 33, 2), slowed, atol=2e-4)
    assert not torch.allclose(slowed, stock, atol=1e-3)
    with pytest.raises(RequestError, match="token_order must be raster or columns, not 'rows'"):
        radial.apply(wan, token_order="rows")  # type: ignore[arg-type]


def test_a_timestep_a_token_is_turned_too() -> None:
    case = CASES["WanTransformer3DModel"]
    transformer = case.build()
    inputs = case.inputs(transformer, case.latents, 1)
    tokens = 6 * 6 * 4
    inputs["timestep"] = torch.linspace(0, 999, tokens)[None]
    with torch.no_grad():
        stock = transformer(**inputs, return_dict=False)[0]
        with radial.apply(transformer, block_size=16, token_order="columns", schedule=Schedule.dense()):
            assert torch.allclose(transformer(**inputs, return_dict=False)[0], stock, atol=2e-5)
            by_position = (inputs["hidden_states"], inputs["timestep"], inputs["encoder_hidden_states"])
            assert torch.allclose(transformer(*by_position, return_dict=False)[0], stock, atol=2e-5)
            with pytest.raises(ModelError, match="take token_order raster"):
                transformer(**inputs | {"timestep": torch.zeros(1, 6)})
            transformer.proj_out = torch.nn.Sequential(transformer.proj_out)
            with pytest.raises(ModelError, match="proj_out was replaced"):
                transformer(**inputs)
