"""Chunks from noise: the same after a stop, guidance, sparse reads and their rectification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from torch import Tensor

from radial.attention.story.sparse_reads import sparse_lists
from radial.attention.story.tokens import hold_tokens
from radial.errors import ModelError, RequestError
from radial.plans.pattern import RadialPattern
from radial.plans.story.memory import StoryMemory, StoryPlan
from radial.stories.engine import Sampling, StoryEngine, Words

MEMORY = StoryMemory(chunk_frames=2, window_frames=4, memory_positions=3)
PLAN = StoryPlan(MEMORY, (1, 2, 1, 1, 1), cuts=(2,))
LEARNED = StoryMemory(chunk_frames=2, window_frames=4, memory_positions=3, kind="learned", memory_tokens=6)


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    torch.manual_seed(1)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=64,
    ).eval().requires_grad_(False)  # fmt: skip
    hold_tokens(model, torch.randn(6, 32))
    return model


def engine_of(transformer: WanTransformer3DModel, sampling: Sampling, plan: StoryPlan = PLAN) -> StoryEngine:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return StoryEngine(transformer, lambda generator: scheduler, plan, sampling, (8, 8))


def words_of(plan: StoryPlan, chunk: int) -> Words:
    generator = torch.Generator().manual_seed(plan.segment_of(chunk))
    return Words(torch.randn(1, 5, 8, generator=generator), torch.zeros(1, 5, 8))


def noise_of(plan: StoryPlan, chunk: int) -> Tensor:
    return torch.randn(1, 4, len(plan.frames_of(chunk)), 8, 8, generator=torch.Generator().manual_seed(100 + chunk))


def film(engine: StoryEngine, made: list[Tensor] | None = None, chunks: int | None = None) -> list[Tensor]:
    """All chunks, of which the first ones may be there already."""
    plan, made = engine.plan, list(made or [])
    for chunk, latents in enumerate(made):
        engine.take(chunk, latents, words_of(plan, chunk))
    for chunk in range(len(made), plan.chunks if chunks is None else chunks):
        made.append(engine.make(chunk, noise_of(plan, chunk), words_of(plan, chunk), torch.Generator()))
        engine.take(chunk, made[-1], words_of(plan, chunk))
    return made


SPARSE = RadialPattern(decay=0.2, skip_width=16)


@pytest.mark.parametrize(("memory", "sampling"), [
    (MEMORY, Sampling(2)), (MEMORY, Sampling(2, 3.0)), (MEMORY, Sampling(2, 3.0, SPARSE, 16, 1)),
    (MEMORY, Sampling(2, 1.0, SPARSE, 16, 3)), (MEMORY, Sampling(2, 1.0, SPARSE, 16, 0)),
    (LEARNED, Sampling(2, 3.0)), (LEARNED, Sampling(2, 1.0, SPARSE, 16, 3)),
])  # fmt: skip
def test_a_film_goes_on_bit_for_bit(
    transformer: WanTransformer3DModel, memory: StoryMemory, sampling: Sampling
) -> None:
    plan = replace(PLAN, memory=memory)
    with engine_of(transformer, sampling, plan) as engine:
        whole = film(engine)
    for stopped in (1, 4, 5):
        with engine_of(transformer, sampling, plan) as engine:
            again = film(engine, whole[:stopped])
        assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    assert type(transformer.blocks[0].attn1.processor).__name__ == "WanAttnProcessor"


def test_learned_tokens_must_be_those_of_the_memory(transformer: WanTransformer3DModel) -> None:
    plan = replace(PLAN, memory=LEARNED.model_copy(update={"memory_tokens": 5}))
    with pytest.raises(ModelError, match="brings 6 learned tokens, and a memory of 5 is wanted"):
        engine_of(transformer, Sampling(2), plan)
    bare = WanTransformer3DModel.from_config(transformer.config)
    with pytest.raises(ModelError, match="no adapter brings its tokens"):
        engine_of(bare, Sampling(2), replace(PLAN, memory=LEARNED))
    hold_tokens(bare, torch.randn(17, 32))
    many = replace(PLAN, memory=LEARNED.model_copy(update={"memory_tokens": 17}))
    with pytest.raises(RequestError, match="17 learned tokens is more than the 16 of a latent frame"):
        engine_of(bare, Sampling(2), many)
    assert type(bare.blocks[0].attn1.processor).__name__ == "WanAttnProcessor"
    with pytest.raises(ModelError, match="two adapters bring learned tokens"):
        hold_tokens(bare, torch.randn(3, 32))


def test_later_segments_do_not_change_earlier_chunks(transformer: WanTransformer3DModel) -> None:
    with engine_of(transformer, Sampling(2)) as engine:
        whole = film(engine)
    shorter = StoryPlan(MEMORY, (1, 2, 1), cuts=(2,))
    with engine_of(transformer, Sampling(2), shorter) as engine:
        assert all(torch.equal(one, other) for one, other in zip(whole, film(engine), strict=False))


def test_all_blocks_are_the_dense_read_and_rectified_caches_the_dense_ones(transformer: WanTransformer3DModel) -> None:
    everything = RadialPattern(decay=16.0, skip_width=1)

    def caches(sampling: Sampling, made: list[Tensor]) -> Callable[[int], list[Tensor]]:
        with engine_of(transformer, sampling) as engine:
            film(engine, made, len(made))
            kept = engine.cache._frames
        return lambda frame: [x for pair in kept[frame] for x in pair]

    with engine_of(transformer, Sampling(2)) as engine:
        dense = film(engine)
    with engine_of(transformer, Sampling(2, 1.0, everything, 16)) as engine:
        for one, other in zip(dense, film(engine), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    whole = caches(Sampling(2), dense)
    rectified = caches(Sampling(2, 1.0, SPARSE, 16, 3), dense)  # six chunks: just written once more
    never = caches(Sampling(2, 1.0, SPARSE, 16, 0), dense)
    last = PLAN.frames - 1
    for one, other in zip(whole(last), rectified(last), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    apart = max(float((one - other).abs().max()) for one, other in zip(whole(last), never(last), strict=True))
    assert apart > 1e-3, "what is read sparsely differs"


def test_places_that_the_model_does_not_know_are_refused(transformer: WanTransformer3DModel) -> None:
    memory = StoryMemory(chunk_frames=2, window_frames=60)
    with pytest.raises(RequestError, match="the model knows 64"):
        engine_of(transformer, Sampling(2), StoryPlan(memory, (1,)))


def test_what_is_pinned_is_read_whole_where_others_are_read_sparsely() -> None:
    memory = StoryMemory(chunk_frames=1, window_frames=5, memory_positions=4)
    usual, pinned = (StoryPlan(memory, (1,) * 12, pinned=pinned) for pinned in ((), (1,)))
    reads = pinned.reads(11)[::-1]
    assert (reads[6].frames, reads[6].distance) == ((2,), 7)

    def blocks(plan: StoryPlan) -> set[int]:
        """Of what one chunk of a frame of one block sees: itself, the window, the first frame, and memory."""
        lists = sparse_lists(plan, 11, 4, 4, RadialPattern(decay=0.01, skip_width=16), 16, torch.device("cpu"))
        assert len(lists.row_offsets) == 2
        return set(lists.column_indices.tolist())

    assert 7 not in blocks(usual)
    assert blocks(pinned) == blocks(usual) | {7}
