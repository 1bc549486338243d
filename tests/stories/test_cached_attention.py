"""Chunk by chunk over a cache, and all chunks at once: the same numbers, whatever a story remembers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from radial.attention.story.cache import StoryCache
from radial.attention.story.framewise import Framewise
from radial.attention.story.packed import PackedStory
from radial.attention.story.tokens import hold_tokens
from radial.errors import ModelError, RequestError
from radial.plans.story.memory import MemoryKind, StoryMemory, StoryPlan, thinned

HEIGHT, WIDTH, TEXT, TOKENS = 4, 4, 6, 5  # tokens of a frame, of a text, and learned ones of a segment


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
    hold_tokens(model, torch.randn(TOKENS, 32).double())
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
    levels = torch.cat([levels, torch.zeros(len(clean), len(packed.learned))], 1)
    whole = torch.cat([clean, noisy, clean[:, :, : len(packed.learned)]], 2)
    texts = [*texts_of(plan) * 2, *range(len(packed.learned))]
    with Framewise(transformer, with_layers=False) as call:
        found = call(whole, levels, text, texts, packed, packed.learned)
    return found[:, :, plan.frames : 2 * plan.frames], packed


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
            segment = plan.segment_of(chunk)
            ends = frames.stop == plan.segment_frames(segment).stop
            if plan.memory.kind == "learned" and ends and segment not in plan.dropped:
                cache.begin_learned(segment, clean.device)
                call(noisy[:, :, :1], torch.zeros_like(level[:, :1]), told, [0], cache.attend, range(1))
                cache.write()
            kept.append(cache.tokens)
    return torch.cat(made, 2), kept


KINDS: tuple[MemoryKind, ...] = ("none", "last_frame", "mean_pool", "radial", "learned")


@pytest.mark.parametrize("cuts", [(), (1, 5)], ids=["on", "cut"])
@pytest.mark.parametrize(("kind", "thinning"), [*((kind, 1) for kind in KINDS), ("last_frame", 4)])
def test_cached_chunks_are_those_of_one_masked_call(
    transformer: WanTransformer3DModel, kind: MemoryKind, thinning: int, cuts: tuple[int, ...]
) -> None:
    memory = StoryMemory(
        chunk_frames=2, window_frames=3, kind=kind, memory_positions=3, memory_thinning=thinning,
        memory_tokens=TOKENS if kind == "learned" else None,
    )  # fmt: skip
    plan = StoryPlan(memory, (2, 1, 3, 1, 1, 2, 1, 1, 1), cuts)
    cached, _ = by_chunk(transformer, plan)
    for in_blocks in (False, None):
        whole, packed = at_once(transformer, plan, in_blocks=in_blocks)
        assert (packed.lists is None) == (
            in_blocks is False or kind in ("radial", "learned") or thinning > 1  # parts of frames
        )
        torch.testing.assert_close(cached, whole, rtol=0, atol=1e-12)


_IN_HANDS: dict[str, Any] = {"pinned": (3,), "dropped": (0,), "replaced": ((5, 1),)}


@pytest.mark.parametrize(("kind", "thinning", "wanted"), [
    *((kind, 1, _IN_HANDS) for kind in KINDS[1:]), ("last_frame", 4, _IN_HANDS),
    ("last_frame", 4, {"dropped": (0, 3)}), ("radial", 1, {"replaced": ((4, 1), (0, 6))}),
])  # fmt: skip
def test_what_is_pinned_dropped_and_replaced_is_read_as_the_plan_says(
    transformer: WanTransformer3DModel, kind: MemoryKind, thinning: int, wanted: dict[str, Any]
) -> None:
    memory = StoryMemory(
        chunk_frames=2, window_frames=3, kind=kind, memory_positions=5, memory_thinning=thinning,
        memory_tokens=TOKENS if kind == "learned" else None, memory_frames=2 if kind == "radial" else None,
    )  # fmt: skip
    plan = StoryPlan(memory, (1, 1, 2, 1, 1, 1, 1, 2), (5,), **wanted)
    cached, kept = by_chunk(transformer, plan)
    whole, _ = at_once(transformer, plan)
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-12)
    if wanted.keys() == {"dropped"}:
        _, usual = by_chunk(transformer, StoryPlan(memory, plan.segment_chunks, plan.cuts))
        assert kept[-1] < usual[-1], "what nobody reads any more is let go of"


def test_which_frames_each_chunk_reads_of_a_memory_in_its_users_hands() -> None:
    """Spelled out, for a story of one chunk of two frames a segment: from the memory that lies farthest on, frames and
    distances."""
    memory = StoryMemory(chunk_frames=2, window_frames=2, memory_positions=3, memory_thinning=4)

    def remembered(chunk: int, memory: StoryMemory = memory, **wanted: Any) -> list[tuple[tuple[int, ...], int, int]]:
        reads = StoryPlan(memory, (1,) * 8, **wanted).reads(chunk)
        *far, sink, older, newer = reads
        frame = 1 + 2 * chunk
        assert [(one.frames, one.thinning, one.distance) for one in (sink, older, newer)] == [
            ((0,), 1, 3), ((frame - 2,), 1, 2), ((frame - 1,), 1, 1)
        ]  # fmt: skip
        return [(one.frames, one.thinning, one.distance) for one in far]

    # Segment n ends with frame 2n + 2; the newest, 4, lies in the window of chunk 5. The last place is shared.
    assert remembered(5) == [((2,), 4, 6), ((4,), 4, 6), ((6,), 4, 5), ((8,), 4, 4)]
    # Pinned: whole, nearest, the newer one first; the others move back.
    assert remembered(5, pinned=(0, 2)) == [((4,), 4, 6), ((8,), 4, 6), ((2,), 1, 5), ((6,), 1, 4)]
    assert remembered(1, pinned=(0,)) == []  # it is seen in the window, whole
    assert remembered(5, dropped=(3, 1)) == [((2,), 4, 5), ((6,), 4, 4)]
    # Segment 1 in place of 3: it lies where that one did, and nowhere else.
    assert remembered(5, replaced=((3, 1),)) == [((2,), 4, 6), ((6,), 4, 5), ((4,), 4, 4)]
    # Segment 3 in place of 0, once it is finished.
    assert remembered(3, replaced=((0, 3),)) == remembered(3) == [((2,), 4, 5), ((4,), 4, 4)]
    assert remembered(4, replaced=((0, 3),)) == [((4,), 4, 5), ((6,), 4, 4)]
    assert remembered(5, replaced=((0, 3),)) == [((4,), 4, 6), ((6,), 4, 5), ((8,), 4, 4)]
    radial = StoryMemory(chunk_frames=2, window_frames=2, memory_positions=8, kind="radial", memory_frames=2)
    assert remembered(5, radial) == [((2,), 2, 7), ((4,), 2, 6), ((6,), 1, 5), ((8,), 1, 4)]
    assert remembered(5, radial, pinned=(0,)) == [((4,), 2, 8), ((6,), 1, 7), ((8,), 1, 6), ((1,), 1, 5), ((2,), 1, 4)]
    # As old as the segment that it stands for.
    assert remembered(5, radial, replaced=((3, 0),)) == [((4,), 2, 6), ((6,), 1, 5), ((2,), 1, 4)]


def test_memory_that_cannot_be_as_its_user_wants_it() -> None:
    memory = StoryMemory(memory_positions=3)
    for wanted, problem in (
        ({"replaced": ((0, 4),)}, "segment 1 is remembered as segment 5, and the story has 4"),
        ({"replaced": ((1, 1),)}, "segment 2 is remembered as segment 2, which is itself"),
        ({"replaced": ((1, 0),), "dropped": (0,)}, "segment 1, which is dropped: name another, or keep that one"),
        ({"replaced": ((2, 1), (1, 0))}, "as segment 2, and that one as segment 1: name the one that is read"),
        ({"pinned": (0, 1, 2)}, "takes 3 places of memory, and there are 2 for it: pin less, or take more memory_pos"),
    ):
        with pytest.raises(RequestError, match=problem):
            StoryPlan(memory, (1, 1, 1, 1), **wanted)
    with pytest.raises(RequestError, match=r"takes 8 places .* or fewer memory_frames"):
        StoryPlan(StoryMemory(kind="radial", memory_positions=8), (2, 1), pinned=(0,))
    with pytest.raises(RequestError, match="this story remembers nothing"):
        StoryPlan(StoryMemory(kind="none"), (1, 1), dropped=(0,))


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


def seen_by(plan: StoryPlan, kind: MemoryKind, recalled: int, rebuilt: int) -> list[list[tuple[int, int]]]:
    """For each frame of the sequence, spelled out: the frames that it sees, and how far back from the first frame that
    sees the same."""
    window, positions = plan.memory.window_frames, plan.memory.memory_positions
    count, frames = len(plan.segment_chunks), plan.frames
    ends = [plan.segment_frames(segment).stop for segment in range(count)]
    slot = 2 * frames if kind == "learned" else 0

    def left_of(segment: int) -> int:
        return slot + segment if kind == "learned" else ends[segment] - 1

    def remembered(segments: range) -> list[tuple[int, int]]:
        """Newest first, behind the window and the place of the first frame."""
        newest = reversed(segments)
        return [(left_of(one), window + 2 + min(at, positions - 1)) for at, one in enumerate(newest)]

    found: list[list[tuple[int, int]]] = []
    for first in (0, frames):
        for chunk in range(plan.chunks):
            own = plan.frames_of(chunk)
            past = []
            for read in plan.reads(chunk):
                past.append((slot + read.segment if read.segment is not None else read.frames[0], read.distance))
            found += [past + [(first + one, own.start - one) for one in own]] * len(own)
    for segment in range(count) if kind == "learned" else ():
        begin = max(ends[segment] - window, ends[segment - 1] if segment else 0)
        found.append([(frame, ends[segment] - frame) for frame in range(begin, ends[segment])])
    for segment, memory in (
        (rebuilt, [one for one in remembered(range(count)) if one[0] == left_of(rebuilt)]),
        (recalled, remembered(range(recalled))),
    ):
        chunk = sum(plan.segment_chunks[:segment])
        for number in range(chunk, chunk + plan.segment_chunks[segment]):
            own = [frame for frame in plan.frames_of(number) if frame]
            here = len(found)
            found += [memory + [(here + at, -at) for at in range(len(own))]] * len(own)
    return found


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("kind", ["last_frame", "learned"])
def test_copies_see_memory_alone(transformer: WanTransformer3DModel, kind: MemoryKind, in_blocks: bool) -> None:
    """Outputs and gradients of all frames are those of dense attention in fp64 under a mask that is spelled out."""
    tokens = HEIGHT * WIDTH
    memory = StoryMemory(
        chunk_frames=2, window_frames=3, kind=kind, memory_positions=2,
        memory_tokens=tokens if kind == "learned" else None,
    )  # fmt: skip
    plan = StoryPlan(memory, (1, 2, 1, 2, 1), (2,))
    recalled, rebuilt = 3, 1
    copies = (*plan.reconstruction(rebuilt), *plan.recall(recalled))
    packed = PackedStory(plan, transformer, HEIGHT, WIDTH, torch.device("cpu"), copies=copies, in_blocks=in_blocks)
    seen = seen_by(plan, kind, recalled, rebuilt)
    assert packed.frames == len(seen)
    generator = torch.Generator().manual_seed(5)
    shape = (2, packed.frames * tokens, 2, 16)
    q, k, v = (torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    grad = torch.randn(shape, dtype=torch.float64, generator=generator)

    def turned(x: Tensor, places: Tensor) -> Tensor:
        columns = transformer.rope.t_dim
        rates = 10_000.0 ** (-torch.arange(0, columns, 2, dtype=torch.float64) / columns)
        angles = places[:, None] * rates
        pairs = torch.view_as_complex(x[..., :columns].unflatten(-1, (-1, 2)).contiguous())
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat([torch.view_as_real(pairs * turns).flatten(-2), x[..., columns:]], -1)

    made = []
    for frame, sees in enumerate(seen):
        place = next((distance for one, distance in sees if one == frame), 0)
        here = torch.full((tokens,), -float(place)).double()
        index = torch.cat([one * tokens + torch.arange(tokens) for one, _ in sees])
        away = torch.tensor([-float(distance) for _, distance in sees]).repeat_interleave(tokens).double()
        own_q = turned(q[:, frame * tokens : (frame + 1) * tokens], here)
        scores = torch.einsum("bqgd,bkgd->bgqk", own_q, turned(k[:, index], away)) / 4
        made.append(torch.einsum("bgqk,bkgd->bqgd", scores.softmax(-1), v[:, index]))
    wanted = torch.cat(made, 1)
    wanted_grads = torch.autograd.grad((wanted * grad).sum(), (q, k, v))
    out = packed(0, q, k, v)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    for one, other in zip(torch.autograd.grad((out * grad).sum(), (q, k, v)), wanted_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["last_frame", "mean_pool", "radial", "learned"])
def test_nothing_leaks_into_copies(transformer: WanTransformer3DModel, kind: MemoryKind) -> None:
    """Through all layers: what a copy must not know can be anything, and it stays as it is, bit for bit."""
    learned = TOKENS if kind == "learned" else None
    memory = StoryMemory(chunk_frames=2, window_frames=2, kind=kind, memory_positions=4, memory_tokens=learned)
    plan = StoryPlan(memory, (1, 2, 1, 1))
    recalled, rebuilt = 2, 1
    kinds = [plan.reconstruction(rebuilt), plan.recall(recalled)]
    packed = PackedStory(plan, transformer, HEIGHT, WIDTH, torch.device("cpu"), copies=[*kinds[0], *kinds[1]])
    clean, noisy, _, text = story_of(plan, stories=1)
    index = [frame for copies in kinds for copy in copies for frame in copy.frames]
    rebuilt_frames = sum(len(copy.frames) for copy in kinds[0])
    parts = {
        "clean": clean,
        "noisy": noisy,
        "learned": clean[:, :, : len(packed.learned)],
        "copies": noisy[:, :, index],
    }
    telling = [*texts_of(plan) * 2, *range(len(packed.learned)), *(plan.segment_of_frame(frame) for frame in index)]

    def predict(**changed: Tensor) -> tuple[Tensor, Tensor]:
        whole = torch.cat(list((parts | changed).values()), 2)
        levels = torch.full((1, whole.shape[2]), 300.0)
        with Framewise(transformer, with_layers=False) as call:
            made = call(whole, levels, text, telling, packed, packed.learned)[:, :, packed.learned.stop :]
        return made[:, :, :rebuilt_frames], made[:, :, rebuilt_frames:]

    def changed_in(x: Tensor, frames: range) -> Tensor:
        x = x.clone()
        x[:, :, frames.start : frames.stop] += 1
        return x

    rebuilt_as, recalled_as = predict()
    end, begin = plan.segment_frames(rebuilt).stop, plan.segment_frames(recalled).start
    later = changed_in(clean, range(end, plan.frames))
    first, _ = predict(clean=later, noisy=noisy + 1, learned=parts["learned"] + 1)
    assert torch.equal(first, rebuilt_as)
    later = changed_in(clean, range(begin, plan.frames))
    _, second = predict(clean=later, noisy=noisy + 1, learned=parts["learned"] + 1)
    assert torch.equal(second, recalled_as)
    other = changed_in(parts["copies"], range(2))  # the first of two chunks of the segment that is rebuilt
    first, second = predict(copies=other)
    assert torch.equal(second, recalled_as)
    assert torch.equal(first[:, :, 2:], rebuilt_as[:, :, 2:])
    # And what they are to know counts.
    first, second = predict(clean=changed_in(clean, plan.segment_frames(rebuilt)))
    assert (first - rebuilt_as).abs().max() > 1e-6
    assert (second - recalled_as).abs().max() > 1e-6


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
    assert counts["last_frame"] == counts["mean_pool"] == counts["learned"]  # 64 tokens are a frame
    assert [b - a for a, b in itertools.pairwise(counts["last_frame"])] == [64 * n for n in (8, 16, 31)]
    octaves = [b - a for a, b in itertools.pairwise(counts["radial"])]
    assert all(abs(octave - 8 * 64) <= 64 * 2 for octave in octaves), "a segment's tokens an octave"


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_keeps_what_is_read_and_no_more(transformer: WanTransformer3DModel, kind: MemoryKind) -> None:
    learned = TOKENS if kind == "learned" else None
    memory = StoryMemory(chunk_frames=1, window_frames=2, kind=kind, memory_positions=4, memory_tokens=learned)
    plan = StoryPlan(memory, (1,) * 20)
    _, kept = by_chunk(transformer, plan)
    bound = 3 * HEIGHT * WIDTH
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
