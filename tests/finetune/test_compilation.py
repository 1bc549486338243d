"""Blocks of a run are compiled once for each kind of batch, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch._dynamo.utils import counters

import radial
from radial import Schedule
from radial.attention.packed.clips import PackedClips
from radial.models.table import MODELS
from radial_finetune.adapter.form import AdapterForm
from radial_finetune.adapter.place import add_adapter
from radial_finetune.objective import WanObjective
from radial_finetune.training import compilation
from radial_finetune.training.compilation import as_written, compile_blocks, compiling

KINDS = 3
PACKS = ((2, 3), (4, 2, 2, 1), (5, 3, 5))  # latent frames of each clip


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch compiles one function for two shapes, and we ask for one more a kind."""
    for name, value in (("_USUAL", 0), ("_OF_A_KIND", 1)):
        monkeypatch.setattr(compilation, name, value)
    with torch._dynamo.config.patch(recompile_limit=KINDS - 1):
        yield


@pytest.fixture
def transformer() -> Any:
    """Two blocks with an adapter, compiled as far as graphs."""
    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    made = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=2, cross_attn_norm=True, rope_max_seq_len=16,
    )  # fmt: skip
    objective = WanObjective(type("Pipe", (), {"config": {}})(), MODELS["wan2.1-1.3b"])
    made.requires_grad_(False)
    add_adapter(made, objective, AdapterForm(2, 2.0))
    compile_blocks(made.train(), backend="eager")
    yield made
    torch.compiler.reset()


def run(transformer: Any, frames: int, grad: bool = True) -> torch.Tensor:
    x = torch.randn(1, 4, frames, 2, 2, generator=torch.Generator().manual_seed(frames))
    with torch.set_grad_enabled(grad):
        out: torch.Tensor = transformer(x, torch.zeros(1), torch.ones(1, 3, 8), return_dict=False)[0]
    return out


def test_each_kind_of_batch_is_compiled_once(transformer: Any) -> None:
    with compiling(KINDS):
        for frames in range(2, KINDS + 2):
            run(transformer, frames).sum().backward()
    assert counters["stats"]["unique_graphs"] == KINDS
    assert all(p.grad is None for n, p in transformer.named_parameters() if not p.requires_grad)


def test_without_room_the_last_kinds_are_not_compiled(transformer: Any) -> None:
    for frames in range(2, KINDS + 2):
        run(transformer, frames).sum().backward()
    assert counters["stats"]["unique_graphs"] < KINDS


def test_what_is_seldom_computed_is_not_compiled(transformer: Any) -> None:
    with compiling(1), as_written():
        told = run(transformer, 2, grad=False)
    assert not counters["stats"]["unique_graphs"]
    with compiling(1):
        torch.testing.assert_close(run(transformer, 2).detach(), told)
    assert counters["stats"]["unique_graphs"] == 1


def test_what_is_compiled_for_a_pack_computes_any_other(transformer: Any) -> None:
    """Predictions, and gradients of the adapter, are those of blocks that are not compiled."""

    def computed(packed: PackedClips, frames: tuple[int, ...]) -> list[torch.Tensor]:
        transformer.zero_grad()
        generator = torch.Generator().manual_seed(0)
        calls = [
            {
                "hidden_states": torch.randn(1, 4, count, 2, 2 * (1 + count % 2), generator=generator),
                "timestep": torch.full((1,), 100.0 * place), "encoder_hidden_states": torch.full((1, 5, 8), place / 4),
            }
            for place, count in enumerate(frames)
        ]  # fmt: skip
        made = packed(calls)
        sum(clip.square().sum() for clip in made).backward()  # type: ignore[union-attr]
        trained = [p for p in transformer.parameters() if p.requires_grad]
        return [clip.detach() for clip in made] + [p.grad.clone() for p in trained if p.grad is not None]

    graphs = []
    with (
        compiling(8), radial.apply(transformer, schedule=Schedule.dense()) as attention,
        PackedClips(transformer, attention, backend="eager") as packed,
    ):  # fmt: skip
        for frames in PACKS:
            found = computed(packed, frames)
            graphs.append(counters["stats"]["unique_graphs"])
            with as_written():
                wanted = computed(packed, frames)
            assert len(found) > len(frames)
            torch.testing.assert_close(found, wanted)
    assert graphs[0] > 1
    assert set(graphs) == {graphs[0]}
