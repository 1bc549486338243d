"""Clips of unlike sizes in one call: each as alone, whatever is in the others."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES
from torch import Tensor

import radial
from radial import ModelError, RadialPattern, RequestError, Schedule
from radial.attention.context_parallel import ContextParallel
from radial.attention.families.find import find_family
from radial.attention.packed.clips import PackedClips
from radial.attention.packed.pack import Budget
from radial.plans.planner import AdaptivePlanner, Planner, StaticPlanner

# Two clips that are alike, apart from each other; a picture; sizes that are no whole blocks of 16 tokens.
SIZES = ((6, 12, 8), (1, 10, 12), (3, 6, 10), (6, 12, 8), (9, 6, 6))
SMALL = ((1, 8, 8), (2, 6, 6), (1, 8, 8))  # for kernels in the interpreter
STATIC = StaticPlanner(RadialPattern(decay=0.1, sink_frames=1, skip_width=16), 16)
WAN, HUNYUAN = "WanTransformer3DModel", "HunyuanVideoTransformer3DModel"


@dataclass(frozen=True)
class Way:
    """How a pack is computed."""

    kind: str
    planner: Planner = STATIC
    backend: str = "gather"
    far_field: Any = "drop"
    dense: bool = False
    a_token: bool = False
    checkpointing: bool = False
    fused: bool = False
    one_list: bool = False
    dtype: torch.dtype = torch.float64
    sizes: tuple[tuple[int, int, int], ...] = SIZES

    def build(self) -> Any:
        case = CASES[self.kind]
        if self.sizes is SMALL:
            case = replace(case, layers={"num_layers": 1})
        transformer = case.build().to(self.dtype)
        if self.fused:  # as models are on a GPU
            assert find_family(transformer).fuse(transformer)
        if self.checkpointing:
            transformer.enable_gradient_checkpointing()
            transformer.train()
        return transformer

    def calls(self, transformer: Any) -> list[dict[str, Any]]:
        calls = []
        for place, size in enumerate(self.sizes):
            made = CASES[self.kind].inputs(transformer, size, 1)
            generator = torch.Generator().manual_seed(place)
            call = {
                name: torch.randn(value.shape, generator=generator, dtype=self.dtype)
                if value.is_floating_point() else value
                for name, value in made.items()
            }  # fmt: skip
            call["timestep"] = torch.tensor([900.0 - 150 * place], dtype=self.dtype)
            if self.a_token:  # the first half of each clip is clean
                tokens = size[0] * size[1] * size[2] // 4
                call["timestep"] = call["timestep"].repeat(1, tokens)
                call["timestep"][:, : tokens // 2] = 0
            if self.kind == HUNYUAN:
                call["encoder_attention_mask"] = (torch.arange(20) < (20, 7, 13, 20, 1)[place]).long()[None]
                call["guidance"] = torch.tensor([1000.0], dtype=self.dtype)
            calls.append(call)
        return calls

    @contextlib.contextmanager
    def installed(self, transformer: Any) -> Iterator[radial.attention.install.RadialAttention]:
        schedule = Schedule.dense() if self.dense else Schedule(dense_layers=int(self.sizes is SIZES))
        with radial.apply(
            transformer, planners=[self.planner], schedule=schedule, block_size=16, backend=self.backend,
            far_field=self.far_field,
        ) as attention:  # fmt: skip
            yield attention


WAYS = {
    "wan": Way(WAN, checkpointing=True),
    "wan, a timestep a token": Way(WAN, a_token=True),
    "wan, dense": Way(WAN, dense=True),
    "wan, lists of each head": Way(WAN, planner=AdaptivePlanner(0.4, 16)),
    "wan, far field": Way(WAN, far_field="mean", backend="reference"),
    "wan, kernels": Way(WAN, backend="triton", dtype=torch.float32, sizes=SMALL),
    "wan, one list": Way(WAN, checkpointing=True, one_list=True),
    "wan, one list, kernels": Way(WAN, backend="triton", dtype=torch.float32, sizes=SMALL, one_list=True),
    "hunyuan, one list": Way(HUNYUAN, one_list=True),
    "wan, fused blocks": Way(WAN, fused=True, dtype=torch.float32),
    "hunyuan, fused blocks": Way(HUNYUAN, fused=True, dtype=torch.float32),
    "hunyuan": Way(HUNYUAN, checkpointing=True),
    "hunyuan, dense": Way(HUNYUAN, dense=True),
}


def weight_of(clip: Tensor) -> Tensor:
    """A loss that differs from place to place."""
    return (clip * torch.linspace(-1, 1, clip.numel(), dtype=clip.dtype).view_as(clip)).sum()


def gradients_of(transformer: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_each_clip_is_as_alone(way: Way) -> None:
    """Outputs, and the gradients of every weight and of the clips."""
    transformer = way.build()
    exact = way.dtype == torch.float64
    close = {"rtol": 1e-6, "atol": 1e-7} if exact else {"rtol": 1e-3, "atol": 1e-4}
    calls = way.calls(transformer)
    for call in calls:
        call["hidden_states"].requires_grad_(True)
    with way.installed(transformer) as attention:
        alone = []
        for call in calls:
            alone.append(transformer(**call, return_dict=False)[0])
            weight_of(alone[-1]).backward()
        wanted = gradients_of(transformer)
        wanted_of_clips = [call["hidden_states"].grad.clone() for call in calls]
        transformer.zero_grad()
        for call in calls:
            call["hidden_states"].grad = None
        with PackedClips(transformer, attention, one_list=way.one_list) as packed:
            before = attention.computed_share
            together = packed(calls)
            sum(weight_of(clip) for clip in together).backward()  # type: ignore[union-attr]
            # Calls of one clip are as ever meanwhile, and after.
            between = transformer(**calls[1], return_dict=False)[0]
        after = transformer(**calls[1], return_dict=False)[0]
    assert way.dense or way.sizes is SMALL or (0 < attention.computed_share < 1 and 0 < before < 1)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, **close)
    torch.testing.assert_close(between, alone[1])
    torch.testing.assert_close(after, alone[1])
    found = gradients_of(transformer)
    assert found.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():  # some are nothing but rounding, as those of biases of keys
        scale = max(float(value.abs().max()), 1e-4 * largest)
        assert float((found[name] - value).abs().max()) / scale < (1e-5 if exact else 2e-3), name
    for call, value in zip(calls, wanted_of_clips, strict=True):
        torch.testing.assert_close(call["hidden_states"].grad, value, **close)


@pytest.mark.parametrize(
    "way",
    [
        WAYS[name]
        for name in ("wan", "wan, dense", "wan, kernels", "hunyuan", "wan, one list, kernels", "hunyuan, one list")
    ],
)
def test_no_clip_sees_another(way: Way) -> None:
    """What a clip is, its words or its timestep, changes no bit of the others; NaN stays where it is."""
    transformer = way.build()
    place = way.sizes.index(way.sizes[0], 1)  # in a group with the first one
    with (
        torch.no_grad(), way.installed(transformer) as attention,
        PackedClips(transformer, attention, one_list=way.one_list) as packed,
    ):  # fmt: skip
        calls = way.calls(transformer)
        before = packed(calls)
        changed = list(calls)
        changed[place] = calls[place] | {name: calls[place][name] * 1.5 for name in ("hidden_states", "timestep")}
        other = packed(changed)
        changed[place] = calls[place] | {"hidden_states": torch.full_like(calls[place]["hidden_states"], torch.nan)}
        broken = packed(changed)
        changed[place] = calls[place] | {"encoder_hidden_states": calls[place]["encoder_hidden_states"] * torch.nan}
        mute = packed(changed)
    assert not torch.equal(other[place], before[place])
    assert bool(broken[place].isnan().all())
    assert bool(mute[place].isnan().all())
    for found in (other, broken, mute):
        assert all(torch.equal(found[i], before[i]) for i in range(len(calls)) if i != place)


def test_gradients_do_not_leak() -> None:
    """The loss of one clip has no gradient in another."""
    way = Way(WAN)
    transformer, (first, *others) = way.build(), way.calls(way.build())
    for call in (first, *others):
        call["hidden_states"].requires_grad_(True)
    with way.installed(transformer) as attention, PackedClips(transformer, attention) as packed:
        weight_of(packed([first, *others])[0]).backward()
    assert float(first["hidden_states"].grad.abs().max()) > 0
    assert all(float(call["hidden_states"].grad.abs().max()) == 0 for call in others)


def test_what_cannot_be_packed_is_refused() -> None:
    way = Way(WAN)
    transformer, calls = way.build(), way.calls(way.build())
    with way.installed(transformer) as attention, PackedClips(transformer, attention, Budget(300, 30_000)) as packed:
        assert len(packed(calls[:2])) == 2
        with pytest.raises(RequestError, match=r"these 5 clips have 444 tokens, and a pack has room for 300"):
            packed(calls)
        with pytest.raises(RequestError, match=r"these 2 clips have 41,472 pairs of tokens, and .* 30,000"):
            packed([calls[0], calls[3]])
        with pytest.raises(RequestError, match="no clips"):
            packed([])
        single = calls[1] | {"hidden_states": calls[1]["hidden_states"].float()}
        with pytest.raises(ModelError, match=r"share all settings, and hidden_states is torch\.float64 with 5"):
            packed([calls[0], single])
        with pytest.raises(ModelError, match="know nothing of encoder_hidden_states_image"):
            packed([calls[0] | {"encoder_hidden_states_image": torch.zeros(1, 5, 8)}])
        with pytest.raises(ModelError, match=r"timestep is .* 1 dimensions on cpu of one and .* 2 dimensions"):
            packed([calls[0], calls[1] | {"timestep": torch.zeros(1, 30, dtype=way.dtype)}])
        with pytest.raises(ModelError, match=r"a clip of a pack is \[1, C, F, H, W\]"):
            packed([{**calls[0], "hidden_states": calls[0]["hidden_states"].repeat(2, 1, 1, 1, 1)}])
    columns = radial.apply(transformer, token_order="columns", block_size=16)
    with columns as attention, pytest.raises(ModelError, match="take token_order raster"):
        PackedClips(transformer, attention)
    shared = radial.apply(transformer, parallel=ContextParallel(None, 0, 28))
    with (
        shared as attention, PackedClips(transformer, attention) as packed,
        pytest.raises(RequestError, match="a clip of 27 tokens cannot be shared by 28 processes"),
    ):  # fmt: skip
        packed([calls[0], calls[1] | {"hidden_states": calls[1]["hidden_states"].new_zeros(1, 16, 1, 18, 6)}])
    far = replace(way, far_field="mean").installed(transformer)
    with far as attention, pytest.raises(ModelError, match="one_list does not go with far_field mean"):
        PackedClips(transformer, attention, one_list=True)
    mochi = CASES["MochiTransformer3DModel"].build()
    with radial.apply(mochi) as attention, pytest.raises(ModelError, match="not for MochiTransformer3DModel"):
        PackedClips(mochi, attention)


def test_processes_share_a_pack(tmp_path: Path) -> None:
    """Over gloo, two processes: the clips and gradients of one process, and calls of one clip in between."""
    script = str(Path(__file__).with_name("shared_packs.py"))
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    found = [json.loads(line) for line in told[0].splitlines() if line.startswith("{")]
    assert len(found) == 4
    for entry in found:
        assert max(entry["output"], entry["between"]) < 1e-9, entry
        assert entry["gradients"] < 1e-7, entry


def test_a_late_backward_pass_is_refused() -> None:
    """Blocks that are computed again attend by the last call's plan: of an earlier pack that would be another's."""
    way = Way(WAN, checkpointing=True)
    transformer, calls = way.build(), way.calls(way.build())
    with way.installed(transformer) as attention, PackedClips(transformer, attention) as packed:
        early = packed(calls[:2])
        packed(calls[2:])
        with pytest.raises(ModelError, match="comes after another call"):
            weight_of(early[0]).backward()
