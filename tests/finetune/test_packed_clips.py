"""Packs of clips: which clips share one, their loss, runs on them, and what does not go with them."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import CASES, WORDS

import radial
from radial import ModelError, RequestError, Schedule
from radial.attention.packed.clips import PackedClips
from radial.attention.packed.pack import Budget
from radial.loading.load import LoadedModel
from radial.models.table import MODELS
from radial_finetune.data.cache import CacheIndex, read_index
from radial_finetune.objective import find_objective, packed_loss, velocity_loss
from radial_finetune.training import train
from radial_finetune.training.batches import Batches, Packs
from radial_finetune.training.batches.packing import deal, first_fit, work_of
from radial_finetune.training.config import make_config
from radial_finetune.training.train import finetune

PACKED = {"packed": True, "batch_tokens": 40, "batch_size": 1}  # clips of 8 and of 16 tokens


def packs_of(cache: Path, model: LoadedModel, rank: int = 0, ranks: int = 1, **values: Any) -> Packs:
    config = make_config(data=str(cache), output="", **PACKED | values)
    objective = find_objective(model.pipe, model.spec)
    index: CacheIndex = read_index(cache)
    return Packs(Batches(config, index, objective, rank, ranks), config, objective, rank, ranks)


def test_first_fit_keeps_both_budgets() -> None:
    sizes = [3, 5, 2, 5, 1, 4, 2, 2]
    packs = first_fit(sizes, Budget(8))
    assert sorted(clip for pack in packs for clip in pack) == list(range(8))
    assert [[sizes[clip] for clip in pack] for pack in packs] == [[5, 3], [5, 2, 1], [4, 2, 2]]
    packs = first_fit(sizes, Budget(8, 29))
    assert [[sizes[clip] for clip in pack] for pack in packs] == [[5, 2], [5, 2], [4, 3, 1], [2]]
    with pytest.raises(RequestError, match="one clip has 5 tokens, and a pack has room for 4"):
        first_fit(sizes, Budget(4))
    with pytest.raises(RequestError, match="one clip has 25 pairs of tokens"):
        first_fit(sizes, Budget(8, 24))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_have_alike_work(ranks: int) -> None:
    sizes = [9, 8, 8, 7, 4, 4, 3, 3, 2, 2, 1, 1, 1]
    work = work_of(dict(enumerate(sizes)), 2.0)
    steps = deal(first_fit(sizes, Budget(10)), ranks, work)
    assert all(len(step) == ranks for step in steps)
    assert sorted(clip for step in steps for pack in step for clip in pack) == list(range(len(sizes)))
    works = [sorted(map(work, step)) for step in steps]
    assert all(one[-1] <= other[0] for one, other in itertools.pairwise(works))


def test_fewer_clips_than_processes_come_again() -> None:
    steps = deal([[0], [1], [2]], 2, work_of({0: 5, 1: 3, 2: 1}, 1.0))
    assert [len(step) for step in steps] == [2, 2]
    assert Counter(clip for step in steps for pack in step for clip in pack) == {0: 1, 1: 1, 2: 2}


def test_an_epoch_has_every_clip_once(two_lengths: Path, model: LoadedModel) -> None:
    """Alone or among processes; what is drawn for a clip does not depend on how many these are."""
    packs = packs_of(two_lengths, model)
    epoch = [packs.read(number) for number in range(packs.steps_in_epoch)]
    clips = [clip for pack in epoch for clip in pack.clips]
    assert all(sum(clip.latents[0, 0].numel() // 4 for clip in pack.clips) <= 40 for pack in epoch)
    assert any(len({clip.bucket for clip in pack.clips}) > 1 for pack in epoch)
    assert len({float(clip.noise.sum()) for clip in clips}) == len(clips) == len(read_index(two_lengths).clips)
    again = packs.read(packs.steps_in_epoch)
    assert not torch.equal(again.clips[0].noise, epoch[0].clips[0].noise)
    both = [packs_of(two_lengths, model, rank, 2) for rank in (0, 1)]
    shared = [pack for number in range(both[0].steps_in_epoch) for pack in (one.read(number) for one in both)]
    noises = {float(clip.noise.sum()): float(clip.sigma) for pack in shared for clip in pack.clips}
    assert noises == {float(clip.noise.sum()): float(clip.sigma) for clip in clips}


def test_weights_add_up_over_processes(two_lengths: Path, model: LoadedModel) -> None:
    """And over the parts of a step, so that each clip counts as among processes, however many share its pack."""
    for mean in ("clip", "token"):
        packs = packs_of(two_lengths, model, loss_mean=mean, gradient_accumulation_steps=3)
        parts = [packs.read(number) for number in range(3)]
        assert len({len(pack.clips) for pack in parts}) > 1
        assert sum(sum(pack.weights) for pack in parts) / 3 == pytest.approx(1)
        rates = {
            weight / (1 if mean == "clip" else clip.latents[0, 0].numel() // 4)
            for pack in parts for clip, weight in zip(pack.clips, pack.weights, strict=True)
        }  # fmt: skip
        assert max(rates) == pytest.approx(min(rates))
        both = [packs_of(two_lengths, model, rank, 2, loss_mean=mean) for rank in (0, 1)]
        step = [one.read(0) for one in both]
        assert sum(sum(pack.weights) for pack in step) / 2 == pytest.approx(1)
        each = {
            (clip.bucket.num_frames, weight)
            for pack in step for clip, weight in zip(pack.clips, pack.weights, strict=True)
        }  # fmt: skip
        shares = dict(each)
        assert len(each) == len(shares)
        if len(shares) == 2:
            assert shares[13] / shares[5] == pytest.approx(2 if mean == "token" else 1)


def test_the_loss_is_that_of_each_clip(two_lengths: Path, model: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    """A clip that is not a number is left out, with its part of the gradients."""
    pack = packs_of(two_lengths, model).read(0)
    assert len(pack.clips) > 1
    objective, transformer = find_objective(model.pipe, model.spec), model.pipe.transformer
    bias = transformer.proj_out.bias.requires_grad_(True)
    clips = [clip.to(torch.device("cpu")) for clip in pack.clips]
    with radial.apply(transformer, schedule=Schedule.dense()) as attention, PackedClips(transformer, attention) as call:
        alone = [velocity_loss(objective, transformer, *clip).mean() for clip in clips]
        (wanted,) = torch.autograd.grad(sum(alone[1:]), bias)  # type: ignore[arg-type]
        together = packed_loss(objective, transformer, call, clips, pack.weights, "none")
        expected = sum(weight * loss for weight, loss in zip(pack.weights, alone, strict=True))
        torch.testing.assert_close(together, torch.as_tensor(expected), rtol=1e-5, atol=1e-6)
        x, *rest = clips[0]
        broken = [(x * torch.nan, *rest), *clips[1:]]
        (found,) = torch.autograd.grad(
            packed_loss(objective, transformer, call, broken, [1.0] * len(clips), "none"), bias
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        assert f"1 of {len(clips)} clips of a step have no finite loss" in caplog.text
        every = [(x * torch.nan, *rest) for x, *rest in clips]
        assert not packed_loss(objective, transformer, call, every, pack.weights, "none").isfinite()


@pytest.mark.parametrize(("family", "name"), [("wan22-ti2v", "wan2.2-ti2v-5b"), ("hunyuan-video", "hunyuan-video")])
def test_other_models_have_the_loss_of_each_clip(family: str, name: str) -> None:
    """A timestep a token, one clip's first frame given; words that attend with the clip."""
    pipe = CASES[family].build()
    pipe.set_progress_bar_config(disable=True)
    objective = find_objective(pipe, replace(MODELS[name], max_sequence_length=WORDS))
    transformer, channels = pipe.transformer, pipe.transformer.config.out_channels
    told = [objective.stack_text([text]) for text in objective.encode_text(["a red circle turns", "grey"])]
    clips = []
    for place, (text, size) in enumerate(zip(told, ((2, 4, 4), (3, 4, 8)), strict=True)):
        generator = torch.Generator().manual_seed(place)
        x, noise = (torch.randn(1, channels, *size, generator=generator) for _ in range(2))
        start = objective.start_of(x[0], {}, first=place == 0, last=False)
        text = text | {name: value[None] for name, value in start.items()}
        clips.append((x, text, noise, torch.tensor([0.4 + 0.3 * place])))
    with radial.apply(transformer, pattern=radial.RadialPattern(decay=0.2), block_size=16) as attention:
        alone = sum(velocity_loss(objective, transformer, *clip).mean() for clip in clips)
        with PackedClips(transformer, attention) as call:
            together = packed_loss(objective, transformer, call, clips, [1.0, 1.0], "none")
    torch.testing.assert_close(together, torch.as_tensor(alone), rtol=1e-5, atol=1e-6)


def test_runs_on_packs_go_on_bit_for_bit(config: dict[str, Any], two_lengths: Path, tmp_path: Path) -> None:
    def stop(progress: train.Progress) -> None:
        if progress.step == 3:
            raise RuntimeError("power cut")

    common = config | PACKED | {"data": str(two_lengths), "loss_mean": "token", "gradient_accumulation_steps": 2}
    common |= {"offload_checkpoints": True}
    runs = [make_config(**common | {"output": str(tmp_path / name)}) for name in ("whole", "halved")]
    lines: list[train.Progress] = []
    shown = {"sample_every": 3, "sample_prompts": ["a red circle"], "sample_frames": [5], "sample_steps": 1}
    first = make_config(**runs[0].model_dump() | shown)  # clips that are made in between change nothing
    whole = load_file(finetune(first, on_step=lines.append))
    assert any(line.validation for line in lines)
    assert all(torch.isfinite(value).all() for value in whole.values())
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(runs[1], on_step=stop)
    halved = load_file(finetune(runs[1], resume=True))
    assert all(torch.equal(whole[name], halved[name]) for name in whole)
    with pytest.raises(RequestError, match="loss_mean was 'token' and is 'clip'"):
        finetune(runs[1].model_copy(update={"loss_mean": "clip"}), resume=True)


def test_what_does_not_go_with_packs_is_refused(config: dict[str, Any], two_lengths: Path, model: LoadedModel) -> None:
    for values, why in (
        ({"packed": True}, "packed needs batch_tokens"),
        ({"loss_mean": "token"}, "loss_mean is of packed = true"),
        ({"batch_pairs": 9}, "batch_pairs is of packed = true"),
        (PACKED | {"objective": "causal"}, "objective does not go with packed clips"),
        (PACKED | {"curriculum": [{"num_frames": 5, "steps": 1}]}, "curriculum does not go with packed clips"),
    ):
        with pytest.raises(RequestError, match=why):
            make_config(data="", output="", **values)
    with pytest.raises(RequestError, match="batch_tokens is 12, and one clip of 13x32x32 needs 16: take that or more"):
        packs_of(two_lengths, model, batch_tokens=12)
    with pytest.raises(RequestError, match="batch_pairs is 100, and one clip of 13x32x32 needs 256"):
        packs_of(two_lengths, model, batch_pairs=100)
    index = read_index(two_lengths)
    told = replace(index, clips=(replace(index.clips[0], then=("it turns",)), *index.clips[1:]))
    run, objective = make_config(data=str(two_lengths), output="", **PACKED), find_objective(model.pipe, model.spec)
    with pytest.raises(RequestError, match="texts that follow one another, and packed clips read one"):
        Packs(Batches(run, told, objective), run, objective)
    other = find_objective(model.pipe, replace(model.spec, name="mochi-1"))
    with pytest.raises(ModelError, match="mochi-1 cannot be tuned on packed clips"):
        super(type(other), other).call(None, torch.zeros(1), {}, torch.zeros(1))
