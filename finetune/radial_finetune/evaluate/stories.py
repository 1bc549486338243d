"""How well longer clips of the shapes world tell their stories, and whether one way to them is better than another.

Held-out stories go through the real pipeline, however a clip is made; :mod:`story_score` reads them. Ways are compared
on the same prompts and seeds: paired intervals, and a test of equivalence with a margin that is named beforehand.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radial_finetune.data.clips import Frames
from radial_finetune.evaluate.shapes import HELD_OUT_SEED, scoring_processes
from radial_finetune.evaluate.story_score import StoryScore, score_story
from radial_finetune.world.render import to_pixels
from radial_finetune.world.scene import Scene
from radial_finetune.world.story import Story, draw_story, story_of
from radial_finetune.world.story_caption import describe_story, describe_unit, words_in_time
from radial_finetune.world.story_render import render_stories

MEASURES: dict[str, Callable[[StoryScore], float]] = {
    "prompt": lambda score: float(score.prompt),
    "order": lambda score: score.motion if score.fault in ("", "events", "order") else 0.0,
    "events": lambda score: score.events if score.fault in ("", "events", "order") else 0.0,
    "colour": lambda score: score.colour,
    "shape": lambda score: score.shape,
    "persistence": lambda score: score.persistence,
    "ground": lambda score: float(score.steady),
    "in time": lambda score: float(score.fault not in ("freeze", "speed", "repetition")),
}
Scorer = Callable[[Sequence[Frames], Sequence[Story]], list[StoryScore]]
Values = dict[str, NDArray[np.float64]]  # by measure: a value a prompt


@dataclass(frozen=True)
class Member:
    """A held-out story and its prompt; ``events`` are what happens in each of its units: as a native scene, where there
    is one, and in words; ``timed`` are prompts that follow one another, one a unit."""

    story: Story
    prompt: str
    events: tuple[tuple[Scene | None, str], ...]
    timed: tuple[str, ...]


def held_out_stories(count: int, units: int) -> list[Member]:
    """Stories and their prompts, the same on every machine; training draws its own from other seeds."""
    rng = random.Random(HELD_OUT_SEED + 100 * units)
    members: list[Member] = []
    for number in range(count):
        story = draw_story(rng, units)
        words = random.Random(f"{HELD_OUT_SEED} {units} {number}")
        timed = words_in_time(story, words)
        events = tuple(describe_unit(story, unit, words) for unit in range(units))
        members.append(Member(story, describe_story(story, words).text, events, timed))
    return members


@contextlib.contextmanager
def scoring(processes: int | None = None) -> Iterator[Scorer]:
    """Scores many clips at a time, in processes of their own."""
    with scoring_processes(processes) as pool:
        yield lambda clips, stories: pool.starmap(_score, list(zip(clips, stories, strict=True)), chunksize=1)


def _score(frames: Frames, story: Story) -> StoryScore:
    return score_story(frames, story, to_pixels(render_stories([story], *frames.shape[1:3])[0]))


def values_of(scores: Sequence[Sequence[StoryScore]]) -> Values:
    """Scores of the same prompts under several seeds, as means over the seeds."""
    return {
        name: np.array([[read(score) for score in seed] for seed in scores]).mean(0) for name, read in MEASURES.items()
    }


def native_values(scores: Sequence[StoryScore], counts: Sequence[int]) -> Values:
    """Scores of native clips of single events, as means over the events of each story."""
    ends = np.cumsum([0, *counts])
    return {
        name: np.array([np.mean([read(score) for score in scores[a:b]]) for a, b in itertools.pairwise(ends)])
        for name, read in MEASURES.items()
    }


def story_of_event(scene: Scene) -> Story:
    """The native clip of an event as a story of one unit."""
    return story_of(scene, 1)


@dataclass(frozen=True)
class Comparison:
    """One way minus another, over the same prompts.

    Attributes:
        mean, low, high: of the difference, with its 95 % interval.
        better: whether the interval lies beyond 0.
        equivalent: whether the 90 % interval lies within the margin: two one-sided tests at 5 %.
    """

    mean: float
    low: float
    high: float
    better: bool
    equivalent: bool

    def __str__(self) -> str:
        told = "better" if self.better else "equivalent" if self.equivalent else "open"
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f}), {told}"


def compare(one: NDArray[np.float64], other: NDArray[np.float64], margin: float, samples: int = 10_000) -> Comparison:
    """Compare two ways by their values for the same prompts, by drawing prompts with repetition.

    Args:
        margin: the difference that is named as none that matters, before anything is measured.
    """
    apart = one - other
    rng = np.random.default_rng(0)
    means = apart[rng.integers(0, len(apart), (samples, len(apart)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    near, far = np.percentile(means, [5, 95])
    return Comparison(
        float(apart.mean()), float(low), float(high), bool(low > 0), bool(-margin < near and far < margin)
    )
