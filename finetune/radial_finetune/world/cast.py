"""Stories with a cast: named figures that come, go on, are gone for some segments and return.

A segment is a unit of :mod:`story`. Segments in which one figure goes on without a jump are a scene, drawn as a story
of its own; scenes follow one another, and before some of them the picture cuts. A figure is described where it first
appears; later its name alone says who it is, but for some captions that describe it again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from radial_finetune.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Figure
from radial_finetune.world.story import UNIT, Story, draw_actor, state_at
from radial_finetune.world.story_caption import describe_event
from radial_finetune.world.story_render import StoryParts, paint_scenes, story_parts

NAMES = (
    "anna", "ben", "carl", "dora", "emil", "fay", "gus", "hana", "ivan", "judy", "kim", "leo", "mia", "nils", "olga",
    "paul", "quinn", "rosa", "sven", "tara", "udo", "vera", "will", "xena", "yuri", "zoe",
)  # fmt: skip
_BEGIN = ("", "b", "br", "c", "d", "dr", "f", "g", "h", "j", "k", "kl", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "tr",
          "v", "w", "x", "y", "z")  # fmt: skip
_END = ("", "n", "s", "r", "l", "m", "k", "t", "x", "d")
PATTERNS = 6  # of scenes and cuts, that stories of one length have: those of a batch share one
_GONE = 2  # segments after which a figure may return
_CUTS, _NEW_GROUND, _DESCRIBED_AGAIN, _LONGER = 0.5, 0.3, 0.08, 0.3


@dataclass(frozen=True)
class CastScene:
    """Segments in which a figure goes on.

    Attributes:
        name: of its figure.
        story: what happens.
        first: the number of its first segment.
        returns: segments since the figure was last seen, 0 where it is new.
        cut: whether the picture cuts before it.
    """

    name: str
    story: Story
    first: int
    returns: int
    cut: bool


@dataclass(frozen=True)
class CastStory:
    """A story's truth: its scenes, and the words of every segment."""

    scenes: tuple[CastScene, ...]
    words: tuple[str, ...]

    @property
    def segments(self) -> int:
        return sum(scene.story.units for scene in self.scenes)

    @property
    def num_frames(self) -> int:
        return UNIT * self.segments + 1

    @property
    def cuts(self) -> tuple[int, ...]:
        """The segments before which the picture cuts."""
        return tuple(scene.first for scene in self.scenes if scene.cut)

    def scene_of(self, segment: int) -> tuple[CastScene, int]:
        """The scene of a segment, and the unit in it."""
        scene = next(one for one in reversed(self.scenes) if one.first <= segment)
        return scene, segment - scene.first


def draw_cast_story(
    rng: random.Random, segments: int, pattern: int = 0, *, returns: float = 0.6, gone: int = _GONE,
    casting: random.Random | None = None, invented: float = 0.0,
) -> CastStory:  # fmt: skip
    """Draw a story.

    Args:
        pattern: of scenes and cuts; stories of the same length and pattern have the same.
        returns: the share of scenes that bring a figure back, where one has been gone for long enough.
        gone: segments between that a figure which returns was away for, at least.
        casting: draws names, and who returns when; stories with the same casting differ in looks and deeds alone.
        invented: the share of names that nobody has heard, in place of :data:`NAMES`.
    """
    casting = casting or rng
    free = list(NAMES)
    casting.shuffle(free)
    if invented:
        free = list(dict.fromkeys(draw_name(casting) if casting.random() < invented else name for name in free))
    background, seed = rng.choice(BACKGROUNDS), rng.getrandbits(31)
    cast: dict[str, Figure] = {}
    seen: dict[str, int] = {}
    scenes: list[CastScene] = []
    words: list[str] = []
    for first, units, cut in scenes_of(segments, pattern):
        if cut and rng.random() < _NEW_GROUND:
            background, seed = rng.choice(BACKGROUNDS), rng.getrandbits(31)
        away = [name for name in cast if first - seen[name] > gone]
        back = bool(away) and (casting.random() < returns or not free)
        if not back and not free:
            away, back = [name for name in cast if name != scenes[-1].name], True
        name = casting.choice(away) if back else free.pop()
        figure = cast[name] if back else _draw_looks(rng, list(cast.values()))
        story = _draw_scene(rng, figure, units, background, seed)
        scenes.append(CastScene(name, story, first, first - seen[name] if back else 0, cut))
        for unit in range(units):
            described = (not back and unit == 0) or rng.random() < _DESCRIBED_AGAIN
            words.append(f"{name}: {describe_event(story, unit, rng, named=described)}")
        cast[name], seen[name] = figure, first + units - 1
    return CastStory(tuple(scenes), tuple(words))


def bare_words(story: CastStory, rng: random.Random) -> tuple[str, ...]:
    """The words of every segment without how its figure looks: whom, by name, and what happens."""
    found = []
    for segment in range(story.segments):
        scene, unit = story.scene_of(segment)
        found.append(f"{scene.name}: {describe_event(scene.story, unit, rng, named=False)}")
    return tuple(found)


def scenes_of(segments: int, pattern: int) -> tuple[tuple[int, int, bool], ...]:
    """The first segment of each scene of a pattern, its segments, and whether the picture cuts before it."""
    rng = random.Random(f"cast {segments} {pattern}")
    found, first = [], 0
    while first < segments:
        units = min(segments - first, 2 if rng.random() < _LONGER else 1)
        found.append((first, units, first > 0 and rng.random() < _CUTS))
        first += units
    return tuple(found)


def cast_parts(story: CastStory, height: int = 128, width: int = 128) -> tuple[StoryParts, ...]:
    """Measure out a story's scenes, on the CPU."""
    return tuple(story_parts(scene.story, height, width) for scene in story.scenes)


def render_cast(stories: Sequence[CastStory], height: int = 128, width: int = 128,
                device: torch.device | str = "cpu") -> Tensor:  # fmt: skip
    """Draw stories of one length, ``[B, 3, T, H, W]``, float32 in -1..1: the first frame, and 32 frames a segment."""
    return torch.stack([paint_scenes(cast_parts(story, height, width), device) for story in stories])


def draw_name(rng: random.Random) -> str:
    """A name that nobody has heard: two to four syllables, or one that ends on a letter more."""
    name = "".join(rng.choice(_BEGIN) + rng.choice("aeiou") for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 4))))
    return name + rng.choice(_END if len(name) > 2 else _END[1:])


def _draw_looks(rng: random.Random, others: Sequence[Figure]) -> Figure:
    """A figure unlike all others in colour or shape."""
    while True:
        figure = Figure(rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(SIZES)), "rest", "normal",
                        tilt=rng.uniform(-0.12, 0.12))  # fmt: skip
        if all((figure.shape, figure.colour) != (other.shape, other.colour) for other in others):
            return figure


def _draw_scene(rng: random.Random, figure: Figure, units: int, background: str, seed: int) -> Story:
    while True:
        actor = draw_actor(rng, units, figure=replace(figure, tilt=rng.uniform(-0.12, 0.12)))
        end = None if actor is None else state_at(actor, UNIT * units)
        # Who leaves small would be remembered so, and returns as large as ever.
        if actor is not None and end is not None and end[2] > 0.99 * figure.radius:
            return Story((actor,), background, seed, units)
