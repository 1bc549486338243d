"""Whether figures that return in a story look as they did, against the shapes world's truth, with controls.

Stories come in twins: the same names and returns, other looks. A chunk of a film that is made with its twin's memory
must show the twin's figure: then it is memory that it was fetched from. Words cannot tell: captions of returns that
describe the figure again are left out.
"""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult, Pool
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radial.attention.story.cache import StoryCache
from radial.generation.sampler import scheduler_for
from radial.loading.load import LoadedModel
from radial.plans.story.memory import Read, StoryMemory, StoryPlan
from radial.request import GenerationRequest
from radial.stories.chunks import encode_words, latent_size
from radial.stories.decoding import ChunkDecoder
from radial.stories.engine import Sampling, StoryEngine
from radial_finetune.data.clips import Frames
from radial_finetune.evaluate.score import find_figure, score_clip
from radial_finetune.evaluate.shapes import HELD_OUT_SEED
from radial_finetune.evaluate.story_windows import words_with_looks
from radial_finetune.world.cast import PATTERNS, CastScene, CastStory, draw_cast_story, render_cast
from radial_finetune.world.render import to_pixels
from radial_finetune.world.story import UNIT, scene_of
from radial_finetune.world.story_caption import describe_event
from radial_finetune.world.story_render import render_stories

CONTROLS = ("memory", "none", "window", "shuffled", "full", "looks")
_SIZE_APART = 0.123  # of the logarithm of a radius: half of what lies between two sizes
_MOST_FRAMES = 512
_SAMPLES = 4000  # of pairs, for intervals
_STILL = 0.5  # of 255: frames that differ by less do not move


@dataclass(frozen=True)
class SegmentScore:
    """What became of one segment.

    Attributes:
        segment: its number.
        returns: segments since its figure was last seen, 0 where it is new or goes on.
        goes_on: whether it goes on from the segment before.
        colour, shape, size, motion: whether they are as they should be.
        confused: whether it looks like another member of the story's cast that was seen before.
        twin: whether it looks like the twin's figure of that name.
        twin_tells: whether that says something: the two look unlike, and it returns for the first time.
        seam: how far its first frame is from the one before, over how far frames on both sides are from each other in
            the median; 1 where it goes on without a seam.
    """

    segment: int
    returns: int
    goes_on: bool
    colour: bool
    shape: bool
    size: bool
    motion: bool
    confused: bool
    twin: bool
    twin_tells: bool
    seam: float


def held_out_casts(
    count: int, segments: int, memory: StoryMemory, segment_latents: int, at_once: int = 16
) -> list[list[CastStory]]:
    """Stories, twins beside each other, in groups of one pattern; returns come from beyond the window alone.

    Args:
        at_once: how many are made beside each other: there are no more patterns than fill so many.
    """
    gone = max(2, -(-memory.window_frames // segment_latents))
    patterns = min(PATTERNS, max(1, count // at_once))
    groups: list[list[CastStory]] = [[] for _ in range(patterns)]
    for pair in range(-(-count // 2)):
        pattern = pair % patterns
        for twin in (0, 1):
            rng = random.Random(f"{HELD_OUT_SEED} cast {segments} {pair} {twin}")
            casting = random.Random(f"{HELD_OUT_SEED} casting {segments} {pair}")
            story = draw_cast_story(rng, segments, pattern, gone=gone, casting=casting)
            groups[pattern].append(_told_once(story, rng))
    return [group for group in groups if group]


def _told_once(story: CastStory, rng: random.Random) -> CastStory:
    """The same story, in which a figure is described where it first appears and nowhere else."""
    words = []
    for segment in range(story.segments):
        scene, unit = story.scene_of(segment)
        named = scene.returns == 0 and unit == 0
        words.append(f"{scene.name}: {describe_event(scene.story, unit, rng, named=named)}")
    return CastStory(story.scenes, tuple(words))


def memory_for(control: str, memory: StoryMemory, frames: int) -> StoryMemory:
    """What a control's chunks see in stories of so many latent frames."""
    changes: dict[str, dict[str, Any]] = {
        "none": {"kind": "none"}, "looks": {"kind": "none"}, "window": {"kind": "none", "first_frame": False},
        "full": {"kind": "none", "window_frames": min(frames, _MOST_FRAMES)},
    }  # fmt: skip
    return memory.model_copy(update=changes.get(control, {}))


class TwinCache(StoryCache):
    """A cache from which each story reads its twin's first frame and memory, and its own window."""

    def read(self, read: Read, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values; of memory, the twin's."""
        keys, values = super().read(read, layer)
        if read.distance <= self.plan.memory.window_frames:
            return keys, values
        other = torch.arange(len(keys), device=keys.device) ^ 1
        return keys[other], values[other]


@torch.inference_mode()
def make_films(
    request: GenerationRequest, model: LoadedModel, memory: StoryMemory, stories: Sequence[CastStory], control: str,
    seed: int = 0, on_chunk: Callable[[int, StoryCache], None] = lambda chunk, cache: None,
) -> list[Frames]:  # fmt: skip
    """Films of stories of one pattern, made beside each other.

    Args:
        on_chunk: told the cache after each chunk.
    """
    pipe, spec = model.pipe, model.spec
    segment_chunks = UNIT // spec.stride[0] // memory.chunk_frames
    frames = 1 + segment_chunks * memory.chunk_frames * stories[0].segments
    seen = memory_for(control, memory, frames)
    cuts = () if control == "full" else stories[0].cuts  # beyond which a window does not reach
    plan = StoryPlan(seen, (segment_chunks,) * stories[0].segments, cuts)
    size = latent_size(request, model)
    sampling = Sampling(request.num_inference_steps or spec.num_inference_steps, request.guidance_scale or 1.0)
    kind = TwinCache if control == "shuffled" else StoryCache

    scheduler_of = functools.partial(scheduler_for, pipe, request.sampler or "model", request.flow_shift)
    latents = []
    with StoryEngine(pipe.transformer, scheduler_of, plan, sampling, size, kind) as engine:
        told = [words_with_looks(story, named=True) if control == "looks" else story.words for story in stories]
        words = [encode_words(request, model, list(line)) for line in zip(*told, strict=True)]
        for chunk in range(plan.chunks):
            generator = torch.Generator("cpu").manual_seed(1_000_003 * seed + chunk)
            shape = (len(stories), pipe.transformer.config.in_channels, len(plan.frames_of(chunk)), *size)
            noise = torch.randn(shape, generator=generator).to(model.device)
            read = words[plan.segment_of(chunk)]
            latents.append(engine.make(chunk, noise, read, generator))
            engine.take(chunk, latents[-1], read)
            on_chunk(chunk, engine.cache)
    return [ChunkDecoder(pipe.vae).decode(one) for one in torch.cat(latents, 2)]


def true_films(stories: Sequence[CastStory], device: torch.device | str = "cpu") -> list[Frames]:
    """The measure's ceiling."""
    return [to_pixels(clip.cpu()) for clip in render_cast(stories, device=device)]


def score_films(
    pool: Pool, films: Sequence[Frames], stories: Sequence[CastStory]
) -> AsyncResult[list[list[SegmentScore]]]:
    """Begin to score films of stories that lie beside their twins, while others are made; ``get`` waits for it."""
    return pool.starmap_async(
        score_film, [(film, stories[place], stories[place ^ 1]) for place, film in enumerate(films)], chunksize=1
    )


def score_film(frames_THWC: Frames, story: CastStory, twin: CastStory) -> list[SegmentScore]:
    """What became of each segment."""
    cast = {scene.name: scene.story.actors[0].figure for scene in story.scenes}
    others = {scene.name: scene.story.actors[0].figure for scene in twin.scenes}
    scores = []
    for segment in range(story.segments):
        scene, unit = story.scene_of(segment)
        actor = scene.story.actors[0]
        native = scene_of(actor, unit, scene.story)
        assert native is not None
        first = 1 + UNIT * segment
        own = frames_THWC[first - 1 if segment == 0 else first : first + UNIT]
        (score,) = score_clip(own, native)
        colour, shape, _ = score.seen
        figure, like = actor.figure, others[scene.name]
        alike = [
            other.name
            for other in story.scenes
            if other.first < segment
            and other.name != scene.name
            and (cast[other.name].colour, cast[other.name].shape) == (colour, shape)
        ]
        scores.append(
            SegmentScore(
                segment, scene.returns if unit == 0 else 0, unit > 0, score.colour, score.shape,
                _is_as_large(own, scene, unit), score.motion, bool(alike),
                (like.colour, like.shape) == (colour, shape),
                (like.colour, like.shape) != (figure.colour, figure.shape) and _is_first_return(story, scene),
                _seam(frames_THWC, first) if segment else 1.0,
            )
        )  # fmt: skip
    return scores


def _is_first_return(story: CastStory, scene: CastScene) -> bool:
    """Whether nobody has seen the figure return before: later its twin has been seen by its name, too."""
    return scene.returns > 0 and sum(one.name == scene.name and one.returns > 0 and one.first < scene.first
                                     for one in story.scenes) == 0  # fmt: skip


def _is_as_large(own: Frames, scene: Any, unit: int) -> bool:
    truth = to_pixels(render_stories([scene.story], *own.shape[1:3])[0])[1 + UNIT * unit : 1 + UNIT * (unit + 1)]
    whole = (slice(0, own.shape[1]), slice(0, own.shape[2]))
    seen, wanted = find_figure(own, whole), find_figure(truth, whole)
    if seen is None or wanted is None:
        return False
    return bool(abs(np.log(np.median(seen.radii) / np.median(wanted.radii))) < _SIZE_APART)


def _seam(frames_THWC: Frames, first: int) -> float:
    def change(a: int, b: int) -> float:
        return float(np.abs(frames_THWC[a].astype(np.float32) - frames_THWC[b]).mean())

    within = [change(t, t + 1) for t in range(first, min(first + UNIT, len(frames_THWC)) - 1)]
    before = [change(t, t + 1) for t in range(max(0, first - UNIT), first - 1)]
    return change(first - 1, first) / max(float(np.median(before + within)), _STILL)


def summarise(scores: Sequence[Sequence[SegmentScore]]) -> dict[str, tuple[float, float, float]]:
    """Means with their 95 % intervals, as shares, and the slopes of drift, a segment. Films of twins, which lie beside
    each other, are drawn together: what happens in one is no news of another."""
    pairs = [[*scores[at], *(scores[at + 1] if at + 1 < len(scores) else ())] for at in range(0, len(scores), 2)]
    found: dict[str, tuple[float, float, float]] = {}

    def add(name: str, members: Callable[[SegmentScore], bool], read: Callable[[SegmentScore], float]) -> None:
        values = [[float(read(one)) for one in pair if members(one)] for pair in pairs]
        if any(values):
            found[name] = _mean_of_pairs([one for one in values if one])

    def new(one: SegmentScore) -> bool:
        return one.returns == 0 and not one.goes_on

    for measure in ("colour", "shape", "size", "motion"):
        add(f"new: {measure}", new, operator.attrgetter(measure))
    for low, high in ((1, 5), (6, 11), (12, 99)):
        for measure in ("colour", "shape", "size"):
            name = f"back after {low} to {high}: {measure}" if high < 99 else f"back after {low} or more: {measure}"
            add(name, lambda one, low=low, high=high: low <= one.returns <= high, operator.attrgetter(measure))  # type: ignore[misc]
    add("back: another of the cast", lambda one: one.returns > 0, lambda one: one.confused)
    add("back: the twin's figure", lambda one: one.returns > 0 and one.twin_tells, lambda one: one.twin)
    add("goes on: colour", lambda one: one.goes_on, lambda one: one.colour)
    add("goes on: seam", lambda one: one.goes_on, lambda one: one.seam)
    for measure in ("colour", "shape", "motion"):
        found[f"drift of new {measure}, a segment"] = _slope(
            [[one for one in pair if new(one)] for pair in pairs], measure
        )
    return found


def _mean_of_pairs(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The mean of all, with its 95 % interval, by drawing pairs of films."""
    sums, counts = np.array([sum(one) for one in values]), np.array([len(one) for one in values])
    drawn = np.random.default_rng(0).integers(0, len(values), (_SAMPLES, len(values)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def _slope(pairs: Sequence[Sequence[SegmentScore]], measure: str) -> tuple[float, float, float]:
    """The slope of a score over the segments, with its 95 % interval, by drawing pairs of films."""
    moments = np.zeros((len(pairs), 5))  # of each pair how many, and the sums of x, y, x x and x y
    for pair, members in enumerate(pairs):
        x = np.array([one.segment for one in members], np.float64)
        y = np.array([float(getattr(one, measure)) for one in members])
        moments[pair] = len(x), x.sum(), y.sum(), (x * x).sum(), (x * y).sum()

    def fit(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        count, x, y, xx, xy = np.moveaxis(sums, -1, 0)
        spread = count * xx - x * x
        slope: NDArray[np.float64] = np.where(spread > 1e-9, (count * xy - x * y) / np.maximum(spread, 1e-9), 0.0)
        return slope

    drawn = np.random.default_rng(0).integers(0, len(pairs), (_SAMPLES, len(pairs)))
    low, high = np.percentile(fit(moments[drawn].sum(1)), [2.5, 97.5])
    return float(fit(moments.sum(0))), float(low), float(high)
