"""Chunk by chunk over a cache, and all chunks at once: the same numbers, whatever a story remembers."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from radial.attention.story.cache import StoryCache
from radial.attention.story.framewise import Framewise
from radial.attention.story.packed import PackedStory
from radial.errors import ModelError
from radial.plans.story.memory import MemoryKind, StoryMemory, StoryPlan, thinned

HEIGHT, WIDTH, TEXT = 4, 4, 6  # tokens of a frame, and of a text


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=3, rope_max_seq_len=128,
    )  # fmt: skip
    model = model.double().eval().requires_grad_(False)
    rope, tables = model.rope, []  # diffusers keeps angles in float32, by which places far from 0 are a little off
    for columns in (rope.t_dim, rope.h_dim, rope.w_dim):
        turns = 10_000.0 ** (-torch.arange(0, columns, 2, dtype=torch.float64) / columns)
        tables.append((torch.arange(128)[:, None] * turns).repeat_interleave(2, dim=1))
    angles = torch.cat(tables, 1)
    assert torch.allclose(angles.cos(), rope.freqs_cos, atol=1e-5)
    rope.freqs_cos, rope.freqs_sin = angles.cos(), angles.sin()
    return model


def story_of(plan: StoryPlan, stories: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean latents, noisy ones, a noise level for each chunk, and a text for each segment."""
    generator = torch.Generator().manual_seed(3)
    clean, noisy = torch.randn(2, stories, 4, plan.frames, 2 * HEIGHT, 2 * WIDTH, generator=generator).double()
    sigma = torch.rand(stories, plan.chunks, generator=generator).double()
    text = torch.randn(stories, len(plan.segment_chunks), TEXT, 8, generator=generator).double()
    return clean, noisy, sigma, text


def texts_of(plan: StoryPlan) -> list[int]:
    return [plan.segment_of_frame(frame) for frame in range(plan.frames)]


def at_once(
    transformer: WanTransformer3DModel, plan: StoryPlan, *, in_blocks: bool | None = None
) -> tuple[Tensor, PackedStory]:
    """What is predicted of every noisy chunk, in one call."""
    clean, noisy, sigma, text = story_of(plan)
    packed = PackedStory(plan, transformer, HEIGHT, WIDTH, clean.device, in_blocks=in_blocks)
    chunk_of = [chunk for chunk in range(plan.chunks) for _ in plan.frames_of(chunk)]
    levels = torch.cat([torch.zeros(len(clean), plan.frames), 1000 * sigma[:, chunk_of]], 1)
    with Framewise(transformer, with_layers=False) as call:
        found = call(torch.cat([clean, noisy], 2), levels, text, texts_of(plan) * 2, packed)
    return found[:, :, plan.frames :], packed


def by_chunk(transformer: WanTransformer3DModel, plan: StoryPlan) -> tuple[Tensor, list[int]]:
    """The same chunk by chunk, and the tokens that were kept after each."""
    clean, noisy, sigma, text = story_of(plan)
    cache = StoryCache(plan, transformer, HEIGHT, WIDTH)
    made, kept = [], []
    with Framewise(transformer) as call:
        for chunk in range(plan.chunks):
            frames = plan.frames_of(chunk)
            own, told = slice(frames.start, frames.stop), text[:, [plan.segment_of(chunk)]]
            cache.begin(chunk, clean.device)
            level = 1000 * sigma[:, [chunk]].expand(-1, len(frames))
            made.append(call(noisy[:, :, own], level, told, [0] * len(frames), cache.attend))
            call(clean[:, :, own], torch.zeros_like(level), told, [0] * len(frames), cache.attend)
            cache.write()
            kept.append(cache.tokens)
    return torch.cat(made, 2), kept


KINDS: tuple[MemoryKind, ...] = ("none", "last_frame", "mean_pool", "radial")


@pytest.mark.parametrize("cuts", [(), (1, 5)], ids=["on", "cut"])
@pytest.mark.parametrize(("kind", "thinning"), [*((kind, 1) for kind in KINDS), ("last_frame", 4)])
def test_cached_chunks_are_those_of_one_masked_call(
    transformer: WanTransformer3DModel, kind: MemoryKind, thinning: int, cuts: tuple[int, ...]
) -> None:
    memory = StoryMemory(chunk_frames=2, window_frames=3, kind=kind, memory_positions=3, memory_thinning=thinning)
    plan = StoryPlan(memory, (2, 1, 3, 1, 1, 2, 1, 1, 1), cuts)
    cached, _ = by_chunk(transformer, plan)
    for in_blocks in (False, None):
        whole, packed = at_once(transformer, plan, in_blocks=in_blocks)
        assert (packed.lists is None) == (
            in_blocks is False or kind == "radial" or thinning > 1  # parts of frames
        )
        torch.testing.assert_close(cached, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["last_frame", "mean_pool", "radial"])
def test_memory_and_words_are_seen_where_they_must_be(transformer: WanTransformer3DModel, kind: MemoryKind) -> None:
    """By gradient: a chunk hangs on each frame that its plan reads, on its own, and directly on no other."""
    memory = StoryMemory(chunk_frames=2, window_frames=2, kind=kind, memory_positions=8)
    plan = StoryPlan(memory, (1, 2, 1, 1, 1))
    packed = PackedStory(plan, transformer, HEIGHT, WIDTH, torch.device("cpu"))
    tokens = HEIGHT * WIDTH
    shape = (1, 2 * plan.frames * tokens, 2, 16)
    q, k, v = (torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(3))
    out = packed(0, q, k, v).unflatten(1, (2, plan.frames, tokens))
    for noisy, chunk in itertools.product((0, 1), range(plan.chunks)):
        frames = plan.frames_of(chunk)
        (seen,) = torch.autograd.grad(out[:, noisy, frames.start : frames.stop].square().sum(), v, retain_graph=True)
        found = seen.unflatten(1, (2, plan.frames, tokens)).abs().amax((0, 3, 4, 5)) > 0
        wanted = torch.zeros(2, plan.frames, dtype=torch.bool)
        wanted[noisy, frames.start : frames.stop] = True
        for read in plan.reads(chunk):
            wanted[0, list(read.frames)] = True
        assert torch.equal(found, wanted), (noisy, chunk)


def test_distances_stay_within_what_is_trained_and_memory_grows_as_it_says() -> None:
    counts = {}
    for kind in KINDS:
        memory = StoryMemory(chunk_frames=4, window_frames=8, kind=kind, memory_positions=5)
        plan = StoryPlan(memory, (2,) * 64)
        for chunk in range(plan.chunks):
            reads = plan.reads(chunk)
            assert all(0 < read.distance <= memory.reach for read in reads)
            frames = [frame for read in reads for frame in read.frames]
            assert len(frames) == len(set(frames)), "nothing is seen twice"
            assert all(frame < plan.frames_of(chunk).start for frame in frames)
        counts[kind] = [plan.tokens_seen(plan.segment_chunks[0] * s, 8, 8) for s in (8, 16, 32, 63)]
    assert len(set(counts["none"])) == 1
    assert counts["last_frame"] == counts["mean_pool"]
    assert [b - a for a, b in itertools.pairwise(counts["last_frame"])] == [64 * n for n in (8, 16, 31)]
    octaves = [b - a for a, b in itertools.pairwise(counts["radial"])]
    assert all(abs(octave - 8 * 64) <= 64 * 2 for octave in octaves), "a segment's tokens an octave"


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_keeps_what_is_read_and_no_more(transformer: WanTransformer3DModel, kind: MemoryKind) -> None:
    memory = StoryMemory(chunk_frames=1, window_frames=2, kind=kind, memory_positions=4)
    plan = StoryPlan(memory, (1,) * 20)
    _, kept = by_chunk(transformer, plan)
    bound = {"none": 3, "last_frame": 3, "mean_pool": 3, "radial": 3}[kind] * HEIGHT * WIDTH
    for chunk, tokens in enumerate(kept[:-1]):
        remembered = plan.tokens_seen(chunk + 1, HEIGHT, WIDTH) - HEIGHT * WIDTH
        assert tokens - remembered <= bound, (chunk, tokens, remembered)
    if kind == "none":
        assert len(set(kept[3:])) == 1


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (30, 52), (3, 5), (1, 7)])
def test_thinned_tokens_are_nested(size: tuple[int, int]) -> None:
    before = set(range(size[0] * size[1]))
    for power in range(8):
        left = thinned(*size, 1 << power)
        assert list(left) == sorted(left)
        assert left
        assert set(left) <= before
        assert len(left) <= -(-size[0] * size[1] >> power) + max(size)
        before = set(left)


def test_other_models_are_told_apart() -> None:
    image = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, in_channels=8, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=16, num_layers=1,
    )  # fmt: skip
    with pytest.raises(ModelError, match="starts from an image"):
        Framewise(image)
    with pytest.raises(ModelError, match="not by Linear"):
        Framewise(torch.nn.Linear(1, 1))
