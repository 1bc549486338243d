"""Longer clips of the world at its own speed: an event takes the time it takes, so that a longer clip holds more.

One unit is 32 frame steps, which is a native clip: n units are 32 n + 1 frames, and event i happens from frame 32 i to
32 i + 32. A figure does one thing after another, or goes on with one that comes back to itself; figures leave and
others come; grounds and the camera move. Units of length and angle are those of ``scene``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from radial_finetune.world.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    ROUND,
    SCALES,
    SHAPES,
    SIDEWAYS,
    SIZES,
    SPEEDS,
    Figure,
    Scene,
    pose,
)

UNIT = 32  # frame steps of an event
GOING_ON = ("bounce", "sway", "orbit", "spin")  # these come back to where they began
LEAVING, COMING = ("leave-left", "leave-right"), ("come-left", "come-right")
TEXTURED = ("striped", "checkered", "speckled")
DRIFTS = (0.15, 0.35)  # how far a ground that moves does so in a unit, in shorter sides: words do not say it
_CAMERA = 0.08  # the most that the camera moves to either side


@dataclass(frozen=True)
class Event:
    """What a figure does for one unit."""

    motion: str
    speed: str = "normal"
    clockwise: bool = True


@dataclass(frozen=True)
class Actor:
    """A figure and what becomes of it.

    Attributes:
        figure: how it looks, and its part of the frame.
        events: one a unit; after the last it stays as it is.
        goes_on: its one event is repeated without end.
        start: (x, y) of its centre when it begins, in shorter sides.
        scale: its size then, of its largest.
        enters: the unit of its first event; it is not there before.
    """

    figure: Figure
    events: tuple[Event, ...]
    start: tuple[float, float]
    scale: float = 1.0
    goes_on: bool = False
    enters: int = 0

    @property
    def leaves(self) -> int | None:
        """The unit after which it is gone."""
        return self.enters + len(self.events) if self.events[-1].motion in LEAVING else None

    def event_at(self, unit: int) -> Event | None:
        """What it does in a unit; None before it comes and when it is gone, rest after its last event."""
        if unit < self.enters or (self.leaves is not None and unit >= self.leaves):
            return None
        if self.goes_on:
            return self.events[0]
        index = unit - self.enters
        return self.events[index] if index < len(self.events) else Event("rest")


@dataclass(frozen=True)
class Story:
    """One longer clip's truth.

    Attributes:
        drift: how far the ground moves in a unit, (x, y) in shorter sides.
        camera: how far the camera moves to either side, (x, y) in shorter sides: there and back in four units.
        units: its length.
    """

    actors: tuple[Actor, ...]
    background: str
    texture_seed: int
    units: int
    drift: tuple[float, float] = (0.0, 0.0)
    camera: tuple[float, float] = (0.0, 0.0)

    @property
    def num_frames(self) -> int:
        return UNIT * self.units + 1

    def camera_at(self, frame: float) -> tuple[float, float]:
        """How far everything is moved by the camera."""
        phase = (frame / (4 * UNIT)) % 1.0
        wave = 4 * phase if phase < 0.25 else 2 - 4 * phase if phase < 0.75 else 4 * phase - 4
        return self.camera[0] * wave, self.camera[1] * wave


State = tuple[float, float, float, float]  # x, y, scale, angle


def state_at(actor: Actor, frame: float, aspect: float = 1.0) -> State | None:
    """Where an actor is at a frame of the clip: (x, y, radius, angle) in shorter sides; None where it is not there."""
    time = frame / UNIT - actor.enters
    if time < 0 or (actor.leaves is not None and frame / UNIT > actor.leaves):
        return None
    x, y, scale, angle = (*actor.start, actor.scale, actor.figure.tilt)
    if actor.goes_on:
        dx, dy, scale, turn = _change(actor, actor.events[0], time, scale, aspect)
        return x + dx, y + dy, actor.figure.radius * scale, angle + turn
    for event in actor.events:
        dx, dy, scale, turn = _change(actor, event, min(time, 1.0), scale, aspect)
        x, y, angle = x + dx, y + dy, angle + turn
        time -= 1.0
        if time <= 0:
            break
    return x, y, actor.figure.radius * scale, angle


def _change(actor: Actor, event: Event, time: float, scale: float, aspect: float) -> State:
    """What an event has changed after a share of its unit: the way, the scale then, the turn."""
    if event.motion in LEAVING + COMING:
        width = max(aspect, 1.0)
        reach = width + 2 * actor.figure.radius  # from anywhere in the frame to beyond its edge
        way = -reach if event.motion.endswith("left") else reach
        # Whoever leaves slows down for nobody; whoever comes stops half-way across.
        return (way * time if event.motion in LEAVING else -way * time / 2), 0.0, scale, 0.0
    figure = replace(actor.figure, motion=event.motion, speed=event.speed, clockwise=event.clockwise, offset=(0.0, 0.0))
    (x0, y0, _, angle0), (x, y, _, angle) = pose(figure, 0.0, aspect), pose(figure, time, aspect)
    if event.motion == "grow":
        scale += (1 - scale) * time
    elif event.motion == "shrink":
        scale += (SCALES[SPEEDS.index(event.speed)] - scale) * time
    return x - x0, y - y0, scale, angle - angle0


def figure_in(actor: Actor, unit: int) -> Figure:
    """A figure as it is seen in a unit: of the size that it has there, at its largest."""
    ends = [state_at(actor, UNIT * at) for at in (unit, unit + 1)]
    seen = max((state[2] for state in ends if state is not None), default=actor.figure.radius)
    size = min(SIZES, key=lambda name: abs(SIZES[name] * actor.figure.scale - seen))
    return replace(actor.figure, size=size)


def scene_of(actor: Actor, unit: int, story: Story) -> Scene | None:
    """A native clip of what a figure does in a unit, alone in the same part of the frame, where the native world has
    such."""
    event = actor.event_at(unit)
    if event is None or event.motion not in MOTIONS:
        return None
    figure = replace(figure_in(actor, unit), motion=event.motion, speed=event.speed, clockwise=event.clockwise)
    return Scene((figure,), story.background, story.texture_seed)


def draw_story(rng: random.Random, units: int) -> Story:
    """Draw a random story: mostly one figure that does one thing after another; also two figures, one that goes on with
    what it does, and one that leaves before another comes."""
    while True:
        kind = rng.random()
        if kind < 0.5 or units < 2:
            actors = [draw_actor(rng, units)]
        elif kind < 0.7:
            actors = _draw_two(rng, units)
        elif kind < 0.88 or units < 3:
            actors = [_draw_going_on(rng, (0.0, 0.0, 1.0, 1.0), 1.0)]
        else:
            actors = _draw_change(rng, units)
        if all(actor is not None for actor in actors):
            break
    background, drift, camera = rng.choice(BACKGROUNDS), (0.0, 0.0), (0.0, 0.0)
    if background in TEXTURED and units > 1:
        moves, way = rng.random(), rng.choice((-1, 1)) * rng.uniform(*DRIFTS)
        if moves < 0.3:
            drift = (0.0, way) if background == "striped" else (way, 0.0)
        elif moves < 0.4:
            camera = (rng.choice((-1, 1)) * _CAMERA, 0.0)
    return Story(tuple(a for a in actors if a is not None), background, rng.getrandbits(31), units, drift, camera)


def _draw_figure(rng: random.Random, region: tuple[float, float, float, float], scale: float) -> Figure:
    return Figure(
        rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(SIZES)), "rest", "normal", region,
        tilt=rng.uniform(-0.12, 0.12), scale=scale,
    )  # fmt: skip


def _draw_going_on(rng: random.Random, region: tuple[float, float, float, float], scale: float) -> Actor:
    figure = _draw_figure(rng, region, scale)
    motion = rng.choice([motion for motion in GOING_ON if motion != "spin" or figure.shape not in ROUND])
    event = Event(motion, rng.choice(SPEEDS), rng.random() < 0.5)
    like = replace(figure, motion=motion, speed=event.speed, clockwise=event.clockwise,
                   offset=(rng.uniform(-1, 1), rng.uniform(-1, 1)))  # fmt: skip
    x, y, _, _ = pose(like, 0.0)
    return Actor(figure, (event,), (x, y), goes_on=True)


def _draw_two(rng: random.Random, units: int) -> list[Actor | None]:
    """One above the other, or side by side where nobody travels sideways; the second goes on with what it does."""
    stacked = rng.random() < 0.6
    regions = [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)] if stacked else [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    first, second = draw_actor(rng, units, regions[0], 0.9), _draw_going_on(rng, regions[1], 0.9)
    alike = first is not None and (first.figure.colour, first.figure.shape) == (
        second.figure.colour,
        second.figure.shape,
    )
    sideways = first is not None and any(e.motion in SIDEWAYS for e in (*first.events, *second.events))
    return [None] if alike or (sideways and not stacked) else [first, second]


def _draw_change(rng: random.Random, units: int) -> list[Actor | None]:
    """One figure leaves, then another comes and does the rest."""
    stays = rng.randint(1, units - 2)
    first = draw_actor(rng, stays)
    if first is None:
        return [None]
    first = replace(first, events=(*first.events, Event(rng.choice(LEAVING))))
    figure = _draw_figure(rng, (0.0, 0.0, 1.0, 1.0), 1.0)
    if (figure.colour, figure.shape) == (first.figure.colour, first.figure.shape):
        return [None]
    coming = Event(rng.choice(COMING))
    rest = units - len(first.events) - 1
    # From beyond the edge to the middle of the frame.
    side = -1 if coming.motion == "come-left" else 1
    start = (0.5 + side * (1 + 2 * figure.radius) / 2, rng.uniform(0.4, 0.6))
    events = _draw_events(rng, figure, rest) if rest else ()
    second = Actor(figure, (coming, *events), start, enters=len(first.events))
    return [first, second if _stays_inside(second, len(first.events) + 1, units) else None]


def draw_actor(
    rng: random.Random, units: int, region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    scale: float = 1.0, figure: Figure | None = None,
) -> Actor | None:  # fmt: skip
    """One figure whose events follow each other without a jump and without leaving its part of the frame; None where
    what was drawn would leave it. A figure that is given has an event in every unit."""
    given = figure is not None
    figure = figure or _draw_figure(rng, region, scale)
    count = units if given or rng.random() < 0.85 else rng.randint(1, units)
    events = _draw_events(rng, figure, count)
    first = next((event for event in events if event.motion in ("grow", "shrink")), None)
    small = first is not None and first.motion == "grow"
    begin = SCALES[SPEEDS.index(first.speed)] if first is not None and small else 1.0
    actor = Actor(figure, events, (0.0, 0.0), begin)
    # Where it may begin, so that all of its way lies inside.
    ways = [state_at(actor, frame) for frame in range(0, UNIT * len(events) + 1, 2)]
    start = []
    for axis in (0, 1):
        low, high = region[axis] + figure.radius + 0.02, region[axis + 2] - figure.radius - 0.02
        way = [state[axis] for state in ways if state is not None]
        least, most = low - min(way), high - max(way)
        if least > most:
            return None
        start.append(rng.uniform(least, most))
    return replace(actor, start=(start[0], start[1]))


def _draw_events(rng: random.Random, figure: Figure, count: int) -> tuple[Event, ...]:
    """Events of which none is like the one before it; sizes go on from where they are."""
    events: list[Event] = []
    size: str | None = None  # the speed of the scale that it has, where it is small
    known = False
    for _ in range(count):
        able = [motion for motion in MOTIONS if not events or motion != events[-1].motion]
        if figure.shape in ROUND:
            able = [motion for motion in able if motion != "spin"]
        if sum(event.motion == "rest" for event in events):
            able = [motion for motion in able if motion != "rest"]
        if known:
            able = [motion for motion in able if motion != ("shrink" if size else "grow")]
        motion, speed = rng.choice(able), rng.choice(SPEEDS)
        if motion == "grow":
            speed, size, known = size or speed, None, True
        elif motion == "shrink":
            size, known = speed, True
        events.append(Event(motion, "normal" if motion == "rest" else speed, rng.random() < 0.5))
    return tuple(events)


def _stays_inside(actor: Actor, first: int, last: int) -> bool:
    states = [state_at(actor, frame) for frame in range(UNIT * first, UNIT * last + 1, 2)]
    edge = actor.figure.radius + 0.02
    return all(s is not None and edge <= s[0] <= 1 - edge and edge <= s[1] <= 1 - edge for s in states)


def story_of(scene: Scene, units: int) -> Story:
    """A native scene as a story: its figures do their one thing, once, or on and on where it comes back to itself."""
    actors = []
    for figure in scene.figures:
        x, y, radius, _ = pose(figure, 0.0)
        event = Event(figure.motion, figure.speed, figure.clockwise)
        goes_on = figure.motion in GOING_ON
        actors.append(Actor(figure, (event,), (x, y), radius / figure.radius, goes_on))
    return Story(tuple(actors), scene.background, scene.texture_seed, units)


def permuted(story: Story, order: Sequence[int]) -> Story:
    """The same story with the first actor's events in another order, from where it began: what a score must notice."""
    first = story.actors[0]
    events = tuple(first.events[index] for index in order)
    return replace(story, actors=(replace(first, events=events), *story.actors[1:]))
