"""Training stories chunk by chunk: what is learned is what generation asks for, and a run goes on as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from radial import RequestError
from radial.attention.story.cache import StoryCache
from radial.attention.story.framewise import Framewise
from radial.loading.load import LoadedModel
from radial.models.lora_settings import read_adapter_settings
from radial.plans.story.memory import StoryMemory
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import CachedClip, CacheIndex, Shards, empty_text_file, write_index, write_tensors
from radial_finetune.data.prepare import encode_texts
from radial_finetune.objective import CUTS, CausalLoss, find_objective, plan_of
from radial_finetune.training.batches import Batches
from radial_finetune.training.checkpoints import list_checkpoints
from radial_finetune.training.config import make_config
from radial_finetune.training.train import Progress, finetune
from radial_finetune.world.cast import draw_cast_story, render_cast
from radial_finetune.world.scene import COLOURS, SHAPES

MEMORY = {"chunk_frames": 2, "window_frames": 2, "kind": "last_frame", "memory_positions": 4}
SEGMENTS = {3: (1,), 4: (2,)}  # and where each length cuts


@pytest.fixture(scope="module")
def stories(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of stories of two lengths, two latent frames a segment."""
    out: Path = tmp_path_factory.mktemp("stories")
    objective = find_objective(model.pipe, model.spec)
    shards, clips = Shards(out), []
    write_tensors(empty_text_file(out, model.fingerprint), encode_texts(objective, [""])[0], overwrite=True)
    generator = torch.Generator().manual_seed(0)
    channels = model.pipe.transformer.config.in_channels
    for segments, cuts in SEGMENTS.items():
        for number in range(3):
            words = tuple(f"anna: segment {place} of {number}" for place in range(segments))
            latents = torch.randn(channels, 1 + 2 * segments, 4, 4, generator=generator).half()
            key = f"{segments:012d}{number:012d}"
            shards.add(key, latents, objective.join_texts(encode_texts(objective, list(words))))
            clips.append((key, Bucket(1 + 8 * segments, 32, 32), words, cuts))
    shards.flush()
    known = tuple(
        CachedClip(key, shards.found[key], bucket, words[0], key, 0, then=words[1:], cuts=cuts)
        for key, bucket, words, cuts in clips
    )
    write_index(out, CacheIndex(model.spec.name, model.fingerprint, 16.0, known))
    return out


@pytest.fixture
def config(stories: Path, wan_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": str(stories), "output": str(tmp_path / "run"), "model": str(wan_folder), "rank": 2, "steps": 4,
        "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 2, "objective": "causal", "memory": MEMORY,
        "held_out": 1, "validate_every": 2, "trackers": [], "caption_dropout": 0.4,
    }  # fmt: skip


def test_the_loss_is_of_what_generation_will_ask(config: dict[str, Any], model: LoadedModel) -> None:
    """Each chunk over the cache of the clean ones before it, at its own noise level, with its own segment's words."""
    from radial_finetune.data.cache import read_index

    objective = find_objective(model.pipe, model.spec)
    settings = make_config(**config)
    batches = Batches(settings, read_index(Path(config["data"])), objective)
    transformer, lengths, silent = model.pipe.transformer, set(), 0
    for number in range(3):
        x, text, noise, sigma = batches.read(number).to(torch.device("cpu"))
        lengths.add(x.shape[2])
        loss = CausalLoss(objective, StoryMemory(**MEMORY))
        with torch.no_grad():
            losses = loss(transformer, x.float(), text, noise, sigma)
        loss.close()
        cuts = tuple(text[CUTS][0].nonzero().flatten().tolist())
        words = text["prompt_embeds"].unflatten(1, (-1, model.spec.max_sequence_length))
        remembered, words = words.chunk(2, 1)
        assert cuts == SEGMENTS[words.shape[1]]
        silent += int((words != remembered).flatten(2).any(2).sum())
        plan = plan_of(StoryMemory(**MEMORY), x.shape[2], words.shape[1], cuts)
        assert sigma.shape == (2, plan.chunks)
        assert sigma.unique().numel() == sigma.numel()
        cache, found = StoryCache(plan, transformer, 2, 2), torch.zeros_like(losses)
        with torch.no_grad(), Framewise(transformer) as call:
            for chunk in range(plan.chunks):
                frames = plan.frames_of(chunk)
                own = slice(frames.start, frames.stop)
                level = sigma[:, chunk, None, None, None, None]
                noisy = (1 - level) * x[:, :, own].float() + level * noise[:, :, own]
                told = words[:, [plan.segment_of(chunk)]]
                cache.begin(chunk, x.device)
                times = 1000 * sigma[:, [chunk]].expand(-1, len(frames))
                velocity = call(noisy, times, told, [0] * len(frames), cache.attend)
                missed = velocity - (noise - x.float())[:, :, own]
                found[:, own] = missed.square().mean((1, 3, 4))
                kept = remembered[:, [plan.segment_of(chunk)]]
                call(x[:, :, own].float(), torch.zeros_like(times), kept, [0] * len(frames), cache.attend)
                cache.write()
        torch.testing.assert_close(losses, found, atol=1e-4, rtol=1e-4)
    assert len(lengths) == 2
    assert silent > 0


def test_a_run_goes_on_as_it_was(config: dict[str, Any]) -> None:
    whole = finetune(make_config(**config))
    stopped = config | {"output": config["output"] + "-stopped"}

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        finetune(make_config(**stopped), on_step=stop)
    assert [one.name for one in list_checkpoints(Path(stopped["output"]))] == ["step-000002"]
    again = finetune(make_config(**stopped), resume=True)
    one, other = load_file(whole), load_file(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(value.abs().max() > 0 for name, value in one.items() if "lora_B" in name)
    settings = read_adapter_settings(whole)
    assert settings is not None
    assert settings.memory == StoryMemory(**MEMORY)
    assert settings.attention == "dense"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"memory": {**MEMORY, "chunk_frames": 3}}, "are not whole chunks of 3"),
        ({"memory": {**MEMORY, "kind": "dream"}}, "memory.kind"),
        ({"objective": "flow_matching"}, 'memory is of objective = "causal"'),
        ({"decay": 0.5}, "decay is not for causal training"),
        ({"sample_every": 2, "sample_prompts": ("a red star",)}, "a causal adapter makes stories"),
    ],
)
def test_what_does_not_go_together(config: dict[str, Any], changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        finetune(make_config(**config | changes))


def test_who_returns_looks_as_before_and_is_told_by_name_alone() -> None:
    looks = {*SHAPES, *COLOURS}
    returned = told_again = 0
    for number in range(40):
        story = draw_cast_story(random.Random(number), 10, number % 3)
        assert len(story.words) == story.segments == 10
        cast: dict[str, Any] = {}
        for scene in story.scenes:
            figure = scene.story.actors[0].figure
            assert (scene.returns == 0) == (scene.name not in cast)
            seen = cast.setdefault(scene.name, (figure.shape, figure.colour, figure.size))
            assert seen == (figure.shape, figure.colour, figure.size)
            words = story.words[scene.first]
            assert words.startswith(f"{scene.name}: ")
            if scene.returns:
                assert scene.returns > 2
                returned += 1
                told_again += bool(looks & set(words.split()))
        assert len({kind[:2] for kind in cast.values()}) == len(cast), "no two of a cast look alike"
    assert returned > 30
    assert told_again < returned / 3
    same = [draw_cast_story(random.Random(n), 5, 2) for n in (1, 2)]
    assert same[0].cuts == same[1].cuts
    clips = render_cast(same, 32, 32)
    assert clips.shape == (2, 3, same[0].num_frames, 32, 32)
    scene = next(one for one in same[0].scenes if one.first)  # the frame before a scene shows another figure
    assert not np.allclose(clips[0, :, 32 * scene.first], clips[0, :, 32 * scene.first + 1])
