"""Rows that are computed exactly beside sparse attention: what they tell, and the dense steps that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_attention import SPARSE, run
from torch._dynamo.utils import counters

import radial
from radial import ModelError, RequestError, Schedule, TokenGrid
from radial.advice import advise
from radial.attention.probe import LAYERS, Probe, sampled_rows
from radial.generation.acceleration.together import why_alone
from radial.generation.pipeline import describe_run, generate
from radial.generation.ranks import Ranks
from radial.generation.snapshot import read_snapshot
from radial.generation.watch import Event
from radial.loading.load import load
from radial.models.find import find_model
from radial.models.step_caches import StepCache
from radial.plans.layout import Layout
from radial.request import GenerationRequest, make_request
from radial_kernels.block_sparse import BlockLists, attention
from radial_kernels.block_sparse.reference import token_mask

BLOCK = 16


@pytest.mark.parametrize("plans", [(), (2,), (1, 3), (2, 3)], ids=str)
def test_figures_are_those_of_full_attention(plans: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against fp64, over all rows of the clip; lists for all, a batch entry, a head, and a few heads at a time."""
    layout = Layout.of(TokenGrid(7, 3, 5), before=13, after=9)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, layout.tokens, 3, 32, generator=generator) for _ in range(3))
    blocks = -(-layout.tokens // BLOCK)
    mask = (torch.rand(*plans, blocks, blocks, generator=generator) < 0.4) | torch.eye(blocks, dtype=torch.bool)
    lists = BlockLists.of_mask(mask, BLOCK)
    out = attention(q, k, v, lists, backend="reference", scale=0.3)

    clip = slice(layout.before, layout.before + layout.grid.tokens)
    weights = (torch.einsum("bshd,bthd->bhst", q.double(), k.double()) * 0.3).softmax(-1)
    real = torch.einsum("bhst,bthd->bshd", weights, v.double())[:, clip]
    kept = token_mask(lists.row_offsets, lists.column_indices, layout.tokens, layout.tokens, BLOCK)
    kept = kept.reshape(*(*plans, 1, 1)[:2], layout.tokens, layout.tokens)
    recall = (weights * kept)[:, :, clip].sum(-1).mean()
    error = (out[:, clip].double() - real).square().sum() / real.square().sum()

    for numbers in (1 << 24, 1):
        monkeypatch.setattr("radial.attention.probe._NUMBERS", numbers)
        probe = Probe(1.0)
        probe.begin_step(0)
        assert probe.choose({4: 0, 5: 1}, layout.tokens, q.device) == {4: 0, 5: 1}
        assert probe.layers == (5,)
        assert probe.figures is None
        probe._rows = layout.grid.tokens
        probe.look(5, q, k, v, out, lists, layout, 0.3)
        probe.end_call()
        assert probe.figures == pytest.approx((recall.item(), error.item()), rel=1e-4)


def test_rows_and_layers_follow_from_step_and_layer() -> None:
    layout = Layout.of(TokenGrid(9, 10, 12), before=5)
    rows = sampled_rows(layout, 8, 3, 7)
    assert torch.equal(rows, sampled_rows(layout, 8, 3, 7))
    assert not torch.equal(rows, sampled_rows(layout, 8, 4, 7))
    assert not torch.equal(rows, sampled_rows(layout, 8, 3, 6))
    assert torch.equal((rows - 5) // 135, torch.arange(8))  # one of each eighth of the clip
    assert len(sampled_rows(Layout.of(TokenGrid(1, 1, 3)), 8, 0, 0)) == 3
    probe = Probe(1.0)
    for tokens, layers in ((75_600, 40), (2112, 12), (118_800, 60)):  # of attention in all layers
        probe.choose(dict.fromkeys(range(layers), 1), tokens, torch.device("cpu"))
        assert len(probe.layers) == LAYERS
        assert 1 <= probe._rows * LAYERS <= 0.002 * tokens * layers


def test_a_step_that_is_off_has_a_dense_one_follow_it(wan: Any) -> None:
    sparse = {"pattern": SPARSE, "block_size": BLOCK}
    with radial.apply(wan, **sparse):
        wanted = run(wan, steps=5)
    with radial.apply(wan, **sparse, dense_above=100) as installed:
        assert torch.equal(run(wan, steps=5), wanted)  # who looks changes nothing
        probe = installed.context.probe
        assert probe is not None
        told = probe.report()
        assert told["made_dense"] == []
        assert 0.5 < told["least_recall"] <= told["recall"] < 1
        assert 0 < told["error"] <= told["greatest_error"] < 1
    with radial.apply(wan, **sparse, dense_above=1e-6) as installed:
        often = run(wan, steps=5)
        assert installed.context.probe is not None
        assert installed.context.probe.report()["made_dense"] == [1, 3]
    # The same as a schedule that has these steps dense.
    with radial.apply(wan, **sparse, schedule=Schedule(dense_every=2)) as scheduled:
        assert torch.equal(run(wan, steps=5), often)
    assert installed.computed_share == scheduled.computed_share
    with radial.apply(wan, **sparse, dense_above=1e-6) as installed:  # a run that begins asks nothing of the one before
        run(wan, steps=1)
        assert torch.equal(run(wan, steps=5), often)


@pytest.mark.slow
def test_compiled_blocks_are_looked_at(wan: Any) -> None:
    """They compile dense, radial, and radial looked at."""
    with radial.apply(wan, pattern=SPARSE, block_size=BLOCK, dense_above=100) as installed:
        run(wan, steps=2)
        assert installed.context.probe is not None
        eager = installed.context.probe.figures
    torch._dynamo.reset()
    wan.transformer.compile_repeated_blocks(dynamic=True, backend="eager")
    with radial.apply(wan, pattern=SPARSE, block_size=BLOCK, dense_above=100) as installed:
        run(wan, steps=2)
        assert installed.context.probe is not None
        assert installed.context.probe.figures == pytest.approx(eager, rel=1e-3)
        compiled = counters["stats"]["unique_graphs"]
        run(wan, frames=21, steps=2)
        assert counters["stats"]["unique_graphs"] == compiled
    torch._dynamo.reset()


def test_a_run_that_is_looked_at_stops_and_goes_on(wan_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """To the bit, with a step cache that leaves steps out; a dense step that it left out is still made."""
    fields: dict[str, Any] = {
        "model": str(wan_folder), "prompt": "a", "height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 5,
        "seed": 1, "block_size": 16, "dense_steps": 0, "dense_layers": 0, "decay": 0.1, "guidance_scale": 3.0,
    }  # fmt: skip
    request = make_request(**fields, dense_above=1e-6).resolve()
    model = load(request)
    events: list[Event] = []

    def on_step(step: Any) -> Any:
        step.snapshot().write(tmp_path / f"{step.step}.safetensors")
        return "go on"

    eager = StepCache(method="first_block", threshold=9.0, source="this test")  # leaves out all that it may
    for cache, stops in ((None, (1, 2, 4)), (eager, (2,))):
        monkeypatch.setattr("radial.models.spec.ModelSpec.step_cache", lambda *_, cache=cache: cache)
        events.clear()
        (whole,) = generate(request, model=model, on_step=on_step, on_event=events.append)
        told = whole.receipt["attention"]
        if cache is None:
            assert told["probe"]["made_dense"] == [1, 3]
            recalls = [event.recall for event in events if event.stage == "denoise" and event.step]
            assert [recall is None for recall in recalls] == [False, True, False, True, False]
        else:
            assert whole.receipt["cache"]["skipped"] > 0.5
            assert told["probe"]["made_dense"] == [1, 2, 3, 4]  # the first is left out, and so those after it
        for done in stops:
            snapshot = read_snapshot(tmp_path / f"{done}.safetensors", describe_run(request, model))
            assert snapshot is not None
            (resumed,) = generate(request, model=model, snapshot=snapshot)
            assert np.array_equal(whole.frames, resumed.frames)
            assert resumed.receipt["attention"] == told
    without = make_request(**fields).resolve()
    assert describe_run(without, model) != describe_run(request, model)
    assert "probe" not in next(generate(without, model=model)).receipt["attention"]


def test_where_nobody_can_look(wan: Any) -> None:
    def asked(**fields: Any) -> GenerationRequest:
        return make_request(**{"prompt": "a", "dense_above": 0.2} | fields).resolve()

    ranks = Ranks.__new__(Ranks)
    ranks.halves, ranks.parallel = object(), radial.ContextParallel(None, 0, 2)  # type: ignore[assignment]
    with pytest.raises(RequestError, match=r"dense_above looks at both passes of a step.*leave one"):
        ranks.check(asked(batched_guidance=True))
    assert why_alone(asked()) == "dense_above"
    notes = advise(asked(attention="dense"), find_model("tiny"))
    assert any("dense_above 0.2 has no effect" in note for note in notes)
    for value in (-1, float("nan")):
        with pytest.raises(RequestError, match="dense_above must be"):
            make_request(prompt="a", dense_above=value)
        with pytest.raises(RequestError, match="dense_above must be 0, for none, or an error above it, not"):
            radial.apply(wan, dense_above=value)
    with radial.apply(wan, dense_above=0.1) as installed, pytest.raises(ModelError, match="not at packs of them"):
        radial.PackedClips(wan.transformer, installed)
