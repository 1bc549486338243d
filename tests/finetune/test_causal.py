"""Training stories chunk by chunk: what is learned is what generation asks for, and a run goes on as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from radial import ModelError, RequestError
from radial.adapters.file import read_adapter
from radial.attention.story.cache import StoryCache
from radial.attention.story.framewise import Framewise
from radial.attention.story.tokens import hold_tokens, memory_tokens, train_tokens
from radial.loading.load import LoadedModel, load
from radial.models.lora_settings import AdapterSettings, read_adapter_settings
from radial.plans.story.memory import StoryMemory
from radial.stories.film import make_film
from radial.stories.request import make_story_request
from radial.stories.script import read_story
from radial_finetune.adapter.file import plain_tensors
from radial_finetune.adapter.place import add_adapter
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import (
    CachedClip,
    CacheIndex,
    Shards,
    empty_text_file,
    read_index,
    write_index,
    write_tensors,
)
from radial_finetune.data.prepare import encode_texts
from radial_finetune.merge import merge
from radial_finetune.objective import (
    BARE,
    CUTS,
    RETURNS,
    CausalLoss,
    TrainedMemory,
    WanObjective,
    find_objective,
    plan_of,
)
from radial_finetune.training.batches import Batches
from radial_finetune.training.checkpoints import list_checkpoints
from radial_finetune.training.config import make_config
from radial_finetune.training.exports import begin_from
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
            bare = tuple(f"anna: bare {place} of {number}" for place in range(segments)) if number != 1 else ()
            encoded = [objective.join_texts(encode_texts(objective, list(one))) for one in (words, bare) if one]
            shards.add(key, latents, encoded[0], bare=encoded[-1] if bare else None)
            clips.append((key, Bucket(1 + 8 * segments, 32, 32), words, cuts, bare))
    shards.flush()
    known = tuple(
        CachedClip(key, shards.found[key], bucket, words[0], key, 0, then=words[1:], cuts=cuts, bare=bare)
        for key, bucket, words, cuts, bare in clips
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


@pytest.mark.parametrize("kind", ["last_frame", "learned"])
def test_copies_are_what_memory_alone_gives(config: dict[str, Any], model: LoadedModel, kind: str) -> None:
    """The losses of memory are those of chunks that are denoised over a cache from which they read memory alone, told
    without a word of looks; a story whose figure is new has nothing to recall."""
    memory = {**MEMORY, "kind": kind, "reconstruction": 0.5, "recall": 0.25, "copied_share": 0.5}
    memory |= {"memory_tokens": 3} if kind == "learned" else {}
    objective, taught = find_objective(model.pipe, model.spec), TrainedMemory(**memory)
    index, still = read_index(Path(config["data"])), torch.device("cpu")
    batches = Batches(make_config(**config | {"memory": memory}), index, objective)
    plain = Batches(make_config(**config), index, objective)
    transformer, counted, own_words = model.pipe.transformer, 0, 0
    if kind == "learned":
        hold_tokens(transformer, torch.randn(3, transformer.patch_embedding.out_channels))
    for number in range(3):
        batch, before = batches.read(number), plain.read(number)
        assert all(torch.equal(batch.text[name], value) for name, value in before.text.items()), "else as without"
        assert torch.equal(batch.noise, before.noise)
        assert torch.equal(batch.sigma, before.sigma)
        x, text, noise, sigma = batch.to(still)
        text[RETURNS][0] &= number == 0  # a story whose figures are all new
        loss = CausalLoss(objective, taught.seen, reconstruction=0.5, recall=0.25)
        with torch.no_grad():
            losses = loss(transformer, x.float(), text, noise, sigma)
            found = loss(transformer, x.float(), before.text, noise, sigma)
        loss.close()
        longest = model.spec.max_sequence_length
        words, _ = text["prompt_embeds"].unflatten(1, (-1, longest)).chunk(2, 1)
        bare = text[BARE].unflatten(1, (-1, longest))
        own_words += sum(torch.equal(one, other) for one, other in zip(words, bare, strict=True))
        cuts = tuple(text[CUTS][0].nonzero().flatten().tolist())
        plan = plan_of(taught.seen, x.shape[2], words.shape[1], cuts)
        cache = StoryCache(plan, transformer, 2, 2)
        with torch.no_grad(), Framewise(transformer) as call:
            for chunk in range(plan.chunks):
                frames, kept = plan.frames_of(chunk), words[:, [plan.segment_of(chunk)]]
                cache.begin(chunk, still)
                clean = x[:, :, frames.start : frames.stop].float()
                call(clean, torch.zeros(2, len(frames)), kept, [0] * len(frames), cache.attend)
                cache.write()
                if kind == "learned":
                    cache.begin_learned(plan.segment_of(chunk), still)
                    call(clean[:, :, :1], torch.zeros(2, 1), kept, [0], cache.attend, range(1))
                    cache.write()
            cache.begin(0, still)
            for name, weight in (("reconstructed", 0.5), ("recalled", 0.25)):
                segments = text[name][0].nonzero().flatten().tolist()
                assert 0 < len(segments) < words.shape[1]
                for segment in segments:
                    (copy,) = plan.reconstruction(segment) if name == "reconstructed" else plan.recall(segment)
                    assert copy.reads
                    level, own = sigma[:, [segment]], slice(copy.frames.start, copy.frames.stop)
                    noisy = (1 - level[:, :, None, None, None]) * x[:, :, own].float()
                    noisy += level[:, :, None, None, None] * noise[:, :, own]
                    cache._make_ready(copy.reads[::-1], 2, still)
                    made = call(noisy, 1000 * level.expand(-1, 2), bare[:, [segment]], [0, 0], cache.attend)
                    missed = (made - (noise - x.float())[:, :, own]).square().mean((1, 3, 4))
                    if name == "recalled":
                        missed *= text[RETURNS][:, [segment]]
                        counted += int(text[RETURNS][:, segment].sum())
                    found[:, own] += weight * x.shape[2] / (2 * len(segments)) * missed
        torch.testing.assert_close(losses, found, atol=1e-4, rtol=1e-4)
    if kind == "learned":
        del transformer.story_memory
    assert counted > 0
    assert 0 < own_words < 6, "stories with such words, and without"


@pytest.mark.parametrize("taught", [{}, {"kind": "learned", "memory_tokens": 2, "reconstruction": 0.1, "recall": 0.1}])
def test_a_run_goes_on_as_it_was(config: dict[str, Any], taught: dict[str, Any]) -> None:
    config |= {"memory": MEMORY | taught}
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
    assert settings.memory == make_config(**config).memory.seen
    assert settings.attention == "dense"
    if taught:
        _makes_stories(whole, config)


def _makes_stories(adapter: Path, config: dict[str, Any]) -> None:
    """An adapter with learned tokens makes a film with them, goes on into another run, and nowhere where it would lose
    them."""
    told = load_file(adapter)["transformer.story_memory.tokens"]
    assert told.shape[0] == 2
    before = load_file(adapter.parent / "step-000002" / "adapter.safetensors")["transformer.story_memory.tokens"]
    assert not torch.equal(told, before), "they learn"
    fields = {
        "model": config["model"], "height": 32, "width": 32, "seed": 1, "num_inference_steps": 2,
        "loras": [{"path": str(adapter)}], "device": "cpu", "fps": 16,
    }  # fmt: skip
    lines = read_story("anna: a red star\nben: a ring\n# cut\nanna: spins")
    story = make_story_request(lines, fields, seconds=0.5)
    assert story.memory is not None
    assert story.memory.kind == "learned"
    loaded = load(story.request)
    assert not loaded.notes
    held = memory_tokens(loaded.pipe.transformer)
    assert held is not None
    assert torch.equal(held, told)
    pieces = []
    for name in ("film", "other"):
        make_film(story, adapter.parent / f"{name}.mp4", model=loaded)
        files = sorted((adapter.parent / f"{name}.story" / "pieces").iterdir())
        pieces.append([load_file(file)["latents"] for file in files])
        held.copy_(torch.randn(held.shape))
    same = [torch.equal(one, other) for one, other in zip(*pieces, strict=True)]
    assert same == [True, True, False], "the third segment reads what the others leave"
    with pytest.raises(RequestError, match="remember learned is for adapters that were tuned with it"):
        make_story_request(lines, fields | {"loras": []}, causal=True, memory={"kind": "learned"})
    assert make_story_request(lines, fields, memory={"kind": "radial"}).memory == StoryMemory(
        **MEMORY | {"kind": "radial"}
    )
    with pytest.raises(ModelError, match="brings memory tokens, which other programs do not know"):
        plain_tensors(read_adapter(adapter))
    with pytest.raises(RequestError, match="no place for them in a checkpoint"):
        merge(config["model"], [{"path": str(adapter)}], adapter.parent / "merged", torch.float32)
    tokenless = adapter.parent / "tokenless.safetensors"
    save_file({name: x for name, x in load_file(adapter).items() if "tokens" not in name}, tokenless)
    for count in (2, 3):
        transformer = type(loaded.pipe.transformer).from_config(loaded.pipe.transformer.config)
        add_adapter(transformer, WanObjective, make_config(**config).adapter_form)
        train_tokens(transformer, count)
        parameters = {name: one for name, one in transformer.named_parameters() if one.requires_grad}
        if count == 2:
            drawn = transformer.story_memory.tokens.detach().clone()
            begin_from(tokenless, parameters, {}, 1.0)
            assert torch.equal(transformer.story_memory.tokens, drawn)
            begin_from(adapter, parameters, {}, 1.0)
            assert torch.equal(transformer.story_memory.tokens, told)
            continue
        with pytest.raises(RequestError, match="has 2 memory tokens and this run 3; set memory_tokens = 2"):
            begin_from(adapter, parameters, {}, 1.0)


def test_what_was_written_before_there_were_learned_memories_is_as_it_was(config: dict[str, Any]) -> None:
    """Runs and films that were begun then go on, and adapters of then are read."""
    before = {
        "chunk_frames": 4, "window_frames": 8, "first_frame": True, "kind": "last_frame", "memory_frames": None,
        "memory_thinning": 1, "memory_positions": 6,
    }  # fmt: skip
    assert make_config(**config | {"memory": before}).model_dump(mode="json")["memory"] == before
    assert make_config(**config | {"memory": before}).memory.seen.model_dump(mode="json") == before
    read = AdapterSettings.model_validate({"memory": before, "attention": "dense"})
    assert read.memory == StoryMemory(memory_positions=6)
    assert read.model_dump()["memory"] == before


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"memory": {**MEMORY, "chunk_frames": 3}}, "are not whole chunks of 3"),
        ({"memory": {**MEMORY, "kind": "dream"}}, "memory.kind"),
        ({"memory": {**MEMORY, "kind": "none", "recall": 0.1}}, 'recall teaches memory, and with kind = "none"'),
        ({"memory": {**MEMORY, "recall": -0.1}}, "memory.recall .*greater than or equal to 0, not -0.1"),
        ({"memory": {**MEMORY, "copied_share": 0.5}}, "copied_share is of reconstruction and recall"),
        ({"memory": {**MEMORY, "memory_tokens": 4}}, "memory_tokens is of a learned memory, and this one is last_fr"),
        ({"memory": {**MEMORY, "kind": "learned"}}, "64 learned tokens is more than the 4 of a latent frame"),
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
