"""What radial attention leaves out, dropped or as means: in a transformer, in lists, in requests and receipts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_attention import SPARSE, run
from test_seam import NearestContent

import radial
from radial import RadialPattern, RequestError, TokenGrid
from radial.advice import advise
from radial.generation.pipeline import describe_run, generate
from radial.loading.load import load
from radial.models.find import find_model
from radial.plans.block_plan import BlockPlan
from radial.plans.far_field import pool_rest
from radial.plans.layout import Layout
from radial.request import make_request
from radial_kernels.block_sparse import PooledLists

LAYOUTS = [
    Layout.of(TokenGrid(33, 8, 8)),  # the bundled model's, whose frames end on blocks' borders
    Layout.of(TokenGrid(21, 5, 9), before=13, after=7),  # frames that drift along blocks, between texts
    Layout.of(TokenGrid(40, 3, 3)),  # smaller than a block
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["even", "uneven", "small"])
def test_every_key_is_attended_to_once(layout: Layout) -> None:
    """Exactly or in one mean; none of another text's, and means of the pyramid are of one place."""
    plan = BlockPlan.build(layout, RadialPattern(decay=0.1, sink_frames=0, skip_width=16), 16)
    assert pool_rest(plan, layout, "drop") is None
    sizes = {}
    for far_field in ("mean", "pyramid"):
        tail = pool_rest(plan, layout, far_field)  # type: ignore[arg-type]
        assert tail is not None
        mask = tail.check(plan).mask().double()
        pooled = mask @ tail.counts.double()
        kept = plan.to_mask().double() @ PooledLists.complement(plan, layout.tokens).counts.double()
        assert (pooled + kept == layout.tokens).all()
        sizes[far_field] = mask.sum()
        if layout.before:
            assert not mask[0].any()  # text sees all, exactly
    assert sizes["pyramid"] < 0.75 * sizes["mean"]


def test_means_bring_a_clip_nearer_to_dense(wan: Any) -> None:
    stock, errors = run(wan, 33, 2), {}
    for far_field in ("drop", "mean", "pyramid"):
        with radial.apply(wan, pattern=SPARSE, block_size=16, far_field=far_field) as installed:  # type: ignore[arg-type]
            errors[far_field] = float((run(wan, 33, 2) - stock).norm())
        assert (installed.context.far is None) == (far_field == "drop")
    assert 0 < errors["mean"] < 0.85 * errors["drop"]
    assert 0 < errors["pyramid"] < 0.85 * errors["drop"]
    with pytest.raises(RequestError, match="far_field must be drop, mean or pyramid, not 'none'"):
        radial.apply(wan, far_field="none")  # type: ignore[arg-type]
    assert torch.equal(run(wan, 33, 2), stock)


def test_a_planner_that_reads_content_has_it_a_head(wan: Any) -> None:
    """Each entry's and head's own lists leave out something else."""
    stock, errors = run(wan), []
    for far_field in ("drop", "mean"):
        with radial.apply(wan, planners=[NearestContent(kept=2)], far_field=far_field):  # type: ignore[arg-type]
            errors.append(float((run(wan) - stock).norm()))
    assert 0 < errors[1] < 0.9 * errors[0]


def test_a_request_says_it_and_its_receipt(wan_folder: Any) -> None:
    fields: dict[str, Any] = {
        "model": str(wan_folder), "prompt": "a", "height": 64, "width": 64, "num_frames": 33, "num_inference_steps": 2,
        "seed": 1, "decay": 0.05, "dense_steps": 0, "block_size": 16,
    }  # fmt: skip
    model = load(make_request(**fields))
    clips = {}
    for far_field in (None, "drop", "mean", "pyramid"):
        request = make_request(**fields, far_field=far_field).resolve()
        (clips[far_field],) = generate(request, model=model)
    assert np.array_equal(clips[None].frames, clips["drop"].frames)
    assert not np.array_equal(clips["drop"].frames, clips["mean"].frames)
    assert "far_field" not in clips["drop"].receipt["attention"]
    told = {name: clips[name].receipt["attention"] for name in ("mean", "pyramid")}
    assert [one["far_field"] for one in told.values()] == ["mean", "pyramid"]
    density = told["mean"]["density"]
    assert told["mean"]["pooled_share"] == pytest.approx((1 - density) / 16, rel=0.05)
    assert 0 < told["pyramid"]["pooled_share"] <= told["mean"]["pooled_share"]
    runs = {describe_run(make_request(**fields, far_field=one).resolve(), model) for one in clips}
    assert len(runs) == 3


def test_what_has_no_effect_is_told() -> None:
    spec = find_model("tiny")
    dense = make_request(prompt="a", attention="dense", far_field="mean").resolve()
    assert any("far_field mean has no effect" in note for note in advise(dense, spec))
    first = make_request(prompt="a", dense_layers=0, far_field="pyramid").resolve()
    assert any("dense_layers 1 helps" in note for note in advise(first, spec))
    with pytest.raises(RequestError, match="far_field must be 'drop', 'mean' or 'pyramid', not 'none'"):
        make_request(prompt="a", far_field="none")
