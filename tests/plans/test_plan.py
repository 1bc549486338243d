"""Plans against the rule spelled out token by token, and the properties every plan has."""

from __future__ import annotations

import functools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radial import BlockPlan, RadialPattern, RequestError, TokenGrid
from radial.plans.drawing import draw_plan
from radial.plans.layout import Layout, Segment
from radial.plans.sketch import MAX_ROWS, PlanSketch


def published_window(distance: int, tokens: int, decay: float, block: int, skip_width: int = 128) -> float:
    """Half-width of the released code's window; -1 where the frame is skipped."""
    if distance <= 1:
        return tokens
    reference = 2 ** tokens.bit_length() / 2 ** distance.bit_length()
    if reference < skip_width and distance % int(skip_width / reference) != 0:
        return -1
    return max(reference * decay, block)


def published_mask(frames: int, tokens: int, decay: float, sink: int, block: int, skip_width: int = 128) -> np.ndarray:
    """The released code's block mask, from token masks of frame pairs. Needs frames * tokens % block == 0."""
    total = frames * tokens
    assert total % block == 0
    distance = np.abs(np.arange(tokens)[:, None] - np.arange(tokens)[None, :])

    @functools.cache
    def pair(window: float, row_offset: int, column_offset: int) -> np.ndarray:
        """Blocks of one frame pair, the pair's tokens set into their place in the block grid."""
        rows, columns = -(-(row_offset + tokens) // block), -(-(column_offset + tokens) // block)
        padded = np.zeros((rows * block, columns * block), np.float32)
        padded[row_offset : row_offset + tokens, column_offset : column_offset + tokens] = distance <= window
        density = padded.reshape(rows, block, columns, block).sum(1) / block
        return (density > 1 / 3).sum(-1) / ((density > 0).sum(-1) + 1e-9) > 0.6

    mask = np.zeros((total // block, total // block), bool)
    for i in range(frames):
        for j in range(frames):
            window = tokens if j < sink else published_window(abs(i - j), tokens, decay, block, skip_width)
            blocks = pair(window, i * tokens % block, j * tokens % block)
            row, column = i * tokens // block, j * tokens // block
            mask[row : row + blocks.shape[0], column : column + blocks.shape[1]] |= blocks
    return mask


@pytest.mark.parametrize(
    ("frames", "height", "width", "decay", "sink", "block"),
    [
        (18, 48, 80, 0.2, 1, 128),
        (18, 48, 80, 1.0, 1, 128),
        (16, 45, 80, 0.95, 0, 128),
        (8, 45, 80, 0.5, 1, 128),
        (40, 8, 16, 1.0, 1, 64),
        (32, 10, 12, 0.7, 2, 64),
        (64, 6, 8, 0.4, 1, 16),
    ],
    ids=lambda value: str(value),
)
def test_mask_is_the_published_one(frames: int, height: int, width: int, decay: float, sink: int, block: int) -> None:
    plan = BlockPlan.build(TokenGrid(frames, height, width), RadialPattern(decay=decay, sink_frames=sink), block)
    expected = published_mask(frames, height * width, decay, sink, block)
    assert np.array_equal(plan.to_mask().numpy(), expected)


@pytest.mark.parametrize(
    ("tokens", "frames", "decay", "sink", "sparsity"),
    [
        ((48, 80), 18, 0.2, 1, 71.3),
        ((48, 80), 18, 1.0, 1, 56.9),
        ((45, 80), 41, 1.0, 1, 74.0),
        ((48, 80), 30, 0.95, 0, 72.5),
        ((45, 80), 128, 1.0, 0, 89.1),
        ((45, 80), 128, 1.0, 1, 88.4),
    ],
)
def test_sparsity_is_the_known_one(
    tokens: tuple[int, int], frames: int, decay: float, sink: int, sparsity: float
) -> None:
    plan = BlockPlan.build(TokenGrid(frames, *tokens), RadialPattern(decay=decay, sink_frames=sink))
    assert 100 * (1 - plan.density) == pytest.approx(sparsity, abs=0.1)


def paper_mask(grid: TokenGrid, block: int, sink: int) -> np.ndarray:
    """Eq. 4 token by token; a block is kept when any of its pairs is."""
    s, total = grid.tokens_per_frame, grid.tokens
    size = -(-total // block)
    mask = np.zeros((size, size), bool)
    for q in range(total):
        for k in range(total):
            distance, row, column = abs(q // s - k // s), q % s, k % s
            power = 2 ** int(math.log2(max(distance, 1)))
            near = power <= s and abs(row - column) + 1 <= s / power
            same = distance % math.ceil(power / s) == 0 and row == column
            if near or same or k // s < sink:
                mask[q // block, k // block] = True
    return mask


@pytest.mark.parametrize(
    ("frames", "height", "width", "sink"), [(7, 4, 5, 1), (12, 3, 3, 0), (20, 1, 4, 1), (24, 2, 1, 0)]
)
def test_paper_variant_is_equation_four(frames: int, height: int, width: int, sink: int) -> None:
    grid = TokenGrid(frames, height, width)
    plan = BlockPlan.build(grid, RadialPattern(variant="paper", sink_frames=sink), 16)
    assert np.array_equal(plan.to_mask().numpy(), paper_mask(grid, 16, sink))


def test_pattern_is_the_published_one() -> None:
    """The window is the released code's."""
    pattern = RadialPattern(decay=0.5, skip_width=16)
    for distance in range(12):
        window, published = pattern.window(distance, 48, 16), published_window(distance, 48, 0.5, 16, skip_width=16)
        assert [offset <= window for offset in range(48)] == [offset <= published for offset in range(48)]


def test_frames_smaller_than_a_third_of_a_block_still_see_their_neighbours() -> None:
    grid, block = TokenGrid(21, 5, 5), 128
    mask = BlockPlan.build(grid, RadialPattern(sink_frames=0), block).to_mask()
    for token in range(0, grid.tokens - 25, 25):
        first, neighbour = token // block, (token + 25) // block
        assert mask[first, neighbour]
        assert mask[neighbour, first]


def test_more_blocks_than_can_be_indexed_are_refused() -> None:
    with pytest.raises(RequestError, match="take a larger block_size"):
        BlockPlan.build(TokenGrid(271, 45, 80), block_size=16)


layouts = st.builds(
    lambda grid, before, after: Layout.of(grid, before=before, after=after),
    st.builds(TokenGrid, frames=st.integers(1, 20), height=st.integers(1, 12), width=st.integers(1, 12)),
    before=st.integers(0, 40) | st.just(0),
    after=st.integers(0, 40) | st.just(0),
)
blocks = st.sampled_from([16, 32, 64, 128])
patterns = st.builds(
    RadialPattern,
    decay=st.sampled_from([0.1, 0.2, 0.5, 1.0, 2.0]),
    sink_frames=st.integers(0, 2),
    variant=st.sampled_from(["published", "paper"]),
    skip_width=st.sampled_from([16, 128]),
)


@settings(max_examples=150, deadline=None)
@given(layouts, patterns, blocks)
def test_every_plan_is_whole(layout: Layout, pattern: RadialPattern, block: int) -> None:
    plan = BlockPlan.build(layout, pattern, block)
    mask, grid = plan.to_mask(), layout.grid
    assert mask.shape[0] == mask.shape[1] == -(-layout.tokens // block)
    assert mask.diagonal().all()
    # Blocks that hold nothing but a sink frame's tokens are in every row.
    first = -(-layout.before // block)
    last = (layout.before + min(pattern.sink_frames, grid.frames) * grid.tokens_per_frame) // block
    assert mask[:, first:last].all()
    for span in (range(layout.before), range(layout.before + grid.tokens, layout.tokens)):
        others = sorted({token // block for token in span})
        assert mask[others].all()
        assert mask[:, others].all()
    aligned = grid.tokens_per_frame % block == 0 and layout.before % block == 0
    if pattern.sink_frames == 0 and (aligned or pattern.variant == "paper"):
        assert torch.equal(mask, mask.T)
    assert plan.density == pytest.approx(mask.float().mean().item())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.sampled_from([(4, 4), (4, 8), (8, 8), (16, 12)]), st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    st.integers(0, 40), st.sampled_from(["published", "paper"]), st.sampled_from([16, 128]),
)  # fmt: skip
def test_symmetric_without_sink(
    frames: int, size: tuple[int, int], decay: float, text: int, variant: Any, skip_width: int
) -> None:
    """Where frames end on a block's border: there the released code's rule is symmetric too. Text may be ragged."""
    pattern = RadialPattern(decay=decay, sink_frames=0, variant=variant, skip_width=skip_width)
    mask = BlockPlan.build(Layout.of(TokenGrid(frames, *size), after=text), pattern, 16).to_mask()
    assert torch.equal(mask, mask.T)


@settings(max_examples=60, deadline=None)
@given(layouts, patterns, blocks)
def test_rows_and_transpose_hold_the_same_blocks(layout: Layout, pattern: RadialPattern, block: int) -> None:
    plan = BlockPlan.build(layout, pattern, block)
    assert plan.column_offsets is not None
    assert plan.row_indices is not None
    for tensor in (plan.row_offsets, plan.column_indices, plan.column_offsets, plan.row_indices):
        assert tensor.dtype == torch.int32
    mask = plan.to_mask().numpy()
    rows, columns = np.nonzero(mask)
    assert plan.column_indices.tolist() == columns.tolist()
    assert plan.row_offsets.tolist() == np.concatenate([[0], np.cumsum(mask.sum(1))]).tolist()
    columns, rows = np.nonzero(mask.T)
    assert plan.row_indices.tolist() == rows.tolist()
    assert plan.column_offsets.tolist() == np.concatenate([[0], np.cumsum(mask.sum(0))]).tolist()


@settings(max_examples=60, deadline=None)
@given(layouts, st.integers(0, 2), blocks, st.sampled_from([16, 128]))
def test_density_falls_with_decay(layout: Layout, sink: int, block: int, skip_width: int) -> None:
    densities = [
        BlockPlan.build(layout, RadialPattern(decay=decay, sink_frames=sink, skip_width=skip_width), block).density
        for decay in (2.0, 1.0, 0.5, 0.2, 0.05)
    ]
    assert densities == sorted(densities, reverse=True)


def test_kept_blocks_grow_like_n_log_n() -> None:
    """Without sink: with each doubling of the frames, work grows close to n log n and far from n squared."""
    counts = [
        BlockPlan.build(TokenGrid(frames, 30, 52), RadialPattern(sink_frames=0)).kept_blocks
        for frames in (16, 32, 64, 128)
    ]
    for frames, before, after in zip((16, 32, 64), counts, counts[1:], strict=False):
        n_log_n = 2 * math.log2(2 * frames) / math.log2(frames)
        assert after / before < 1.1 * n_log_n
        assert after / before < 3  # n squared would be 4


def test_plans_are_shared_by_full_key() -> None:
    grid = TokenGrid(5, 4, 4)
    assert BlockPlan.build(grid, RadialPattern(), 16) is BlockPlan.build(TokenGrid(5, 4, 4), RadialPattern(), 16)
    assert BlockPlan.build(grid, RadialPattern(), 16) is not BlockPlan.build(grid, RadialPattern(), 32)
    assert BlockPlan.build(grid, RadialPattern(decay=0.5), 16) is not BlockPlan.build(grid, RadialPattern(), 16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenGrid(0, 4, 4),
        lambda: Layout.of(TokenGrid(4, 4, 4), before=-1),
        lambda: Segment("clip", 4),
        lambda: BlockPlan.build(Layout((Segment("text", 4),))),
        lambda: BlockPlan.build(Layout(2 * Layout.of(TokenGrid(2, 2, 2)).segments)),
        lambda: RadialPattern(decay=0),
        lambda: RadialPattern(decay=float("nan")),
        lambda: RadialPattern(sink_frames=-1),
        lambda: RadialPattern(variant="other"),  # type: ignore[arg-type]
        lambda: BlockPlan.build(TokenGrid(4, 4, 4), block_size=100),
    ],
)
def test_wrong_values_are_refused(make: object) -> None:
    with pytest.raises(RequestError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("grid", "block", "pattern"),
    [
        (TokenGrid(18, 48, 80), 128, RadialPattern(decay=0.2)), (TokenGrid(128, 45, 80), 128, RadialPattern()),
        (TokenGrid(33, 30, 52), 16, RadialPattern(skip_width=16)),
        (Layout.of(TokenGrid(73, 32, 32), after=77), 16, RadialPattern()),
        (TokenGrid(41, 45, 80), 64, RadialPattern(variant="paper")), (TokenGrid(257, 16, 16), 16, RadialPattern()),
        (Layout.of(TokenGrid(30, 48, 80), before=40), 64, RadialPattern(sink_frames=0)),
        (TokenGrid(1, 1, 1), 16, RadialPattern()),
    ],
)  # fmt: skip
def test_a_sketch_is_like_its_plan(grid: TokenGrid | Layout, block: int, pattern: RadialPattern) -> None:
    plan, sketch = BlockPlan.build(grid, pattern, block), PlanSketch.of(grid, pattern, block)
    assert sketch.rows == plan.rows
    if plan.rows <= MAX_ROWS:
        assert sketch.density == plan.density
    else:
        assert sketch.density == pytest.approx(plan.density, rel=0.005)
    if plan.rows <= sketch.shade.shape[1]:
        assert np.array_equal(sketch.shade, plan.to_mask().numpy())
    else:
        assert float(sketch.shade.mean()) == pytest.approx(sketch.density, rel=0.01)


@pytest.mark.parametrize(
    "grid", [TokenGrid(73, 64, 64), TokenGrid(1025, 26, 26), TokenGrid(11, 250, 260)], ids=lambda grid: f"{grid.frames}"
)
def test_a_sketch_takes_little_whatever_its_clip(grid: TokenGrid) -> None:
    """Plans of these take gigabytes."""
    tracemalloc.start()
    sketch = PlanSketch.of(grid, RadialPattern(decay=16), 16)
    picture = draw_plan(sketch, "a clip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < sketch.density <= 1
    assert picture.size == (1040, 1066)
    assert peak < 300e6


def test_a_sketch_has_the_limits_of_a_plan() -> None:
    with pytest.raises(RequestError, match="more than 46,000 blocks"):
        PlanSketch.of(TokenGrid(1025, 512, 512), RadialPattern(), 16)
    with pytest.raises(RequestError, match="block_size must be"):
        PlanSketch.of(TokenGrid(2, 2, 2), RadialPattern(), 7)
