"""Attention that chooses half of its blocks by what queries and keys hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_attention import run
from tiny_pipelines import CASES

import radial
from radial import RequestError, TokenGrid
from radial.advice import advise
from radial.attention.families.find import find_family
from radial.generation.pipeline import describe_run, generate
from radial.generation.snapshot import read_snapshot
from radial.loading.load import load
from radial.models.find import find_model
from radial.models.spec import COLUMNS
from radial.plans.block_tokens import _places_of_blocks, nearest_blocks
from radial.plans.layout import Layout
from radial.plans.planner import AdaptivePlanner
from radial.plans.sketch import PlanSketch
from radial.plans.token_order import in_columns
from radial.request import make_request
from radial_kernels.block_sparse import BlockLists, select_blocks

GRID = TokenGrid(21, 5, 9)
LAYOUTS = [Layout.of(GRID), Layout.of(GRID, before=13, after=7), in_columns(Layout.of(GRID), 16)]


def mask_of(lists: BlockLists, columns: int) -> torch.Tensor:
    """``[B, H, R, C]``."""
    mask = torch.zeros(*lists.row_offsets.shape[:-1], lists.rows, columns, dtype=torch.bool)
    rows = lists.row_offsets.diff().flatten().long()
    mask.view(-1, columns)[torch.arange(len(rows)).repeat_interleave(rows), lists.column_indices.long()] = True
    return mask


@pytest.mark.parametrize("layout", LAYOUTS, ids=["raster", "text", "columns"])
def test_nearest_blocks(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own, first and foreign blocks are kept, then the nearest; any rows are looked at alike."""
    rows = np.arange(-(-layout.tokens // 16), dtype=np.int32)
    (kept,) = nearest_blocks(layout, 16, 0.3, 1, rows)
    assert kept.diagonal().all()
    assert kept[:, 0].all()
    monkeypatch.setattr("radial.plans.block_tokens._PAIRS", 2 * len(rows))
    _places_of_blocks.cache_clear()
    few = list(nearest_blocks(layout, 16, 0.3, 1, rows[5:9]))
    assert len(few) == 2
    assert np.array_equal(np.concatenate(few), kept[5:9])
    if layout.before:
        assert kept[0].all()
        assert kept[:, -1].all()
    else:
        assert (kept.sum(1) == round(0.3 * len(rows))).all()
        if layout.tile is None:
            assert kept[len(rows) // 2, len(rows) // 2 + 1] > kept[len(rows) // 2, -1]
    sketch = PlanSketch.of_adaptive(layout, 0.6, 1, 16)
    assert np.array_equal(sketch.shade, kept)
    assert np.array_equal(AdaptivePlanner(0.6, 16).core(layout).numpy(), kept)
    assert sketch.density == pytest.approx(0.6, abs=0.02 if not layout.before else 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_weigh_most_are_chosen(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the core, so many a row, an entry and head its own; against the mass that they hold in truth."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 150, 3, 32, generator=generator) for _ in range(2))
    themes = torch.randn(2, 10, 3, 32, generator=generator).repeat_interleave(16, 1)[:, :150]
    q, k = (q + 1.5 * themes).to(dtype), (k + 1.5 * themes[:, torch.randperm(10).repeat_interleave(16)[:150]]).to(dtype)
    core = torch.eye(10, dtype=torch.bool)
    mask = mask_of(select_blocks(q, k, core, 3, block_size=16), 10)
    assert mask.shape == (2, 3, 10, 10)
    assert (mask.sum(-1) == 4).all()
    assert mask.diagonal(dim1=-2, dim2=-1).all()
    assert (mask != mask[:1, :1]).any()
    mass = torch.softmax(torch.einsum("bshd,bthd->bhst", q.double(), k.double()) / 32**0.5, -1)
    mass = torch.nn.functional.pad(mass, (0, 10, 0, 10)).unflatten(-1, (10, 16)).sum(-1).unflatten(2, (10, 16)).sum(3)
    best = (mass.masked_fill(core, 0).topk(3).values.sum(-1)).mean()
    chosen = (mass * (mask & ~core)).sum(-1).mean()
    others = mass.masked_fill(core, 0).sum(-1).mean() * 3 / 9
    assert chosen - others > 0.5 * (best - others)
    monkeypatch.setattr("radial_kernels.block_sparse.select._SCORES", 1)  # a head at a time
    assert torch.equal(mask_of(select_blocks(q, k, core, 3, block_size=16), 10), mask)
    assert mask_of(select_blocks(q, k, core, 99, block_size=16), 10).all()
    with pytest.raises(ValueError, match="10 and 10 blocks"):
        select_blocks(q, k, core[:9], 3, block_size=16)


def test_all_kept_is_stock_and_content_beats_place_alone(wan: Any) -> None:
    stock = run(wan, 33, 2)
    with radial.apply(wan, planners=[AdaptivePlanner(1.0, 16)], block_size=16, token_order="columns") as installed:
        assert torch.allclose(run(wan, 33, 2), stock, atol=2e-4)
        assert installed.computed_share == pytest.approx(1.0)
    with radial.apply(wan, planners=[AdaptivePlanner(0.3, 16)], far_field="mean") as installed:
        assert not torch.allclose(run(wan, 33, 2), stock, atol=1e-4)
        assert 0.3 < installed.computed_share < 0.5  # of so few blocks the sinks are many
        assert installed.plan is None
    assert torch.equal(run(wan, 33, 2), stock)


def test_a_request_for_it_runs_stops_and_goes_on(wan_folder: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "model": str(wan_folder), "prompt": "a", "height": 64, "width": 64, "num_frames": 33, "num_inference_steps": 4,
        "seed": 1, "dense_steps": 1, "early_density": 0.6, "dense_every": 2, "block_size": 16, "attention": "adaptive",
    }  # fmt: skip
    request = make_request(**fields).resolve()
    assert (request.density, request.far_field, request.token_order) == (0.3, "mean", "columns")
    assert request.dense_layers == 1
    model = load(request)

    def on_step(step: Any) -> Any:
        step.snapshot().write(tmp_path / f"{step.step}.safetensors")
        return "go on"

    (whole,) = generate(request, model=model, on_step=on_step)
    for done in (1, 2, 3):  # within denser first steps, before a dense one and after it
        snapshot = read_snapshot(tmp_path / f"{done}.safetensors", describe_run(request, model))
        assert snapshot is not None
        (resumed,) = generate(request, model=model, snapshot=snapshot)
        assert np.array_equal(whole.frames, resumed.frames)
    told = whole.receipt["attention"]
    assert told["early_density"] == 0.6
    assert (told["kind"], told["density"], told["far_field"]) == ("adaptive", 0.3, "mean")
    assert told == resumed.receipt["attention"]
    settings, clip = request.attention_settings, request.grid(model.spec)
    shares = settings.model_copy(update={"far_field": "drop"}).shares(clip)  # a receipt tells of blocks alone
    assert told["computed_share"] == pytest.approx(settings.work(shares, 3, 4).mean(), abs=0.01)
    denser = make_request(**fields, density=0.6).resolve()
    assert describe_run(denser, model) != describe_run(request, model)
    for change in ({"dense_every": 3}, {"early_density": 0.5}):
        assert describe_run(make_request(**fields | change).resolve(), model) != describe_run(request, model)
    (other,) = generate(denser, model=model)
    assert not np.array_equal(other.frames, whole.frames)
    assert other.receipt["attention"]["computed_share"] > told["computed_share"]


def test_what_it_takes_is_told() -> None:
    words = make_request(prompt="a", then=["b"], num_frames=65, attention="adaptive").resolve()
    assert words.token_order == "raster"
    sinks = make_request(prompt="a", num_frames=33, attention="adaptive", density=0.1, sink_frames=3).resolve()
    assert any("3 sink frames, which are 33% of the clip" in note for note in advise(sinks, find_model("tiny")))
    radial_one = make_request(prompt="a", density=0.2).resolve()
    assert any("density 0.2 has no effect" in note for note in advise(radial_one, find_model("tiny")))
    with pytest.raises(RequestError, match=r"density must be .*0\.02.*not 0"):
        make_request(prompt="a", density=0)


def test_models_that_take_columns_are_known() -> None:
    """What a request is told before a model is loaded is what its transformer can."""
    seen = set()
    for name, case in CASES.items():
        pipe = case.build()
        seen.add(type(pipe).__name__)
        if type(pipe).__name__ in COLUMNS:
            assert find_family(pipe.transformer).reorder(pipe.transformer) is not None, name
    assert seen >= COLUMNS
