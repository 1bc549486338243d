"""Whether a longer clip tells its story: each event in its place and at its pace, the right figures in it, on a ground
that stays what it is.

A clip is judged in the order freeze, speed, repetition, events, order: what stands still is not slow besides, and what
is told too slowly has not its order wrong besides. What an earlier fault hides counts as not reached.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from radial_finetune.evaluate.ground import Ground, find_slip, look_at_ground
from radial_finetune.evaluate.score import (
    STRAYED_LIMIT,
    SYMMETRY,
    Sighting,
    find_figure,
    fit_templates,
    motion_costs,
    nearest_colour,
    repetition,
    shape_of,
    split_frame,
    templates,
)
from radial_finetune.world.story import COMING, DRIFTS, LEAVING, UNIT, Actor, Event, Story
from radial_finetune.world.story_render import StoryTrack, story_tracks

# Ground truth through the autoencoder stays below a half of each of these.
MOST_FROZEN = 0.06  # of the clip
MOST_REPEATED = 0.25
PACES = (0.75, 1.3)
MOST_FLICKER, MOST_DRIFT, MOST_NOISE = 1.0, 8.0, 2.5  # of 255, beyond the truth's
MOST_SLIP = 0.15  # pixels a frame that a ground may move otherwise
_STILL = 0.1  # of 255: frames that differ by less are the same one
_RATES = (0.25, 1 / 3, 0.5, 2 / 3, 1.0, 1.5, 2.0, 3.0)
FAULTS = ("freeze", "speed", "repetition", "events", "order")


@dataclass(frozen=True)
class StoryScore:
    """How a clip tells its story.

    Attributes:
        colour, shape: share of the actors that look as asked for.
        motion: share of events that are seen in their place and unit: figure, motion and way.
        events: share of events that are seen anywhere in the clip.
        persistence: share of frames in which a figure in its colour is there, or none is where none should be.
        frozen: longest share of the clip in which nothing moves where something should.
        repeated: how much the clip repeats itself where the truth does not.
        pace: the rate at which the story would be played to look like this.
        late: how far, in units, the whole is before or behind its time.
        ground: how much more than the truth's the ground flickers, drifts and is noisy.
        slip: pixels a frame by which the ground moves otherwise than asked for.
        fault: the first that was found; nothing where there is none.
    """

    colour: float
    shape: float
    motion: float
    events: float
    persistence: float
    frozen: float
    repeated: float
    pace: float
    late: float
    ground: Ground
    slip: float
    fault: str

    @property
    def prompt(self) -> bool:
        """Every figure as asked for, and every event in its place."""
        return self.colour == self.shape == 1.0 and self.order

    @property
    def order(self) -> bool:
        """All events, one after the other, each in its time."""
        return self.fault == ""

    @property
    def flicker(self) -> bool:
        return self.ground.flicker > MOST_FLICKER

    @property
    def drift(self) -> bool:
        return self.ground.drift > MOST_DRIFT

    @property
    def noise(self) -> bool:
        return self.ground.noise > MOST_NOISE

    @property
    def steady(self) -> bool:
        """The ground neither flickers nor drifts, is clean, and moves as asked for."""
        return not (self.flicker or self.drift or self.noise or self.slip > MOST_SLIP)


def score_story(frames_THWC: NDArray[np.uint8], story: Story, truth_THWC: NDArray[np.uint8]) -> StoryScore:
    """Score a clip of a story against its truth, of the same size."""
    _, height, width, _ = frames_THWC.shape
    tracks = story_tracks(story, height, width)
    steadied, still = _without_camera(frames_THWC, story), replace(story, camera=(0.0, 0.0))
    steady_tracks = story_tracks(still, height, width)
    seen = [_look(steadied, still, steady_tracks, members) for members in _places(story)]
    frozen = _frozen(frames_THWC, truth_THWC, np.all([one.there for one in seen], axis=0))
    repeated = max((one.repeated for one in seen), default=0.0)
    pace = min((one.pace for one in seen), key=lambda rate: -abs(np.log(rate)), default=1.0)
    total = sum(one.total for one in seen)
    motion, events = sum(one.placed for one in seen) / total, sum(one.anywhere for one in seen) / total
    found = {
        "freeze": frozen > MOST_FROZEN, "repetition": repeated > MOST_REPEATED,
        "speed": not PACES[0] < pace < PACES[1], "events": events < 1, "order": motion < 1,
    }  # fmt: skip
    ground, clean = look_at_ground(frames_THWC, tracks), look_at_ground(truth_THWC, tracks)
    paces = (DRIFTS[0] * min(height, width) / UNIT, DRIFTS[1] * min(height, width) / UNIT)
    in_time = not (found["freeze"] or found["speed"])  # of what is too slow the ground is, too
    slip = find_slip(frames_THWC, tracks, story.drift, paces) if in_time and story.drift != (0.0, 0.0) else 0.0
    beyond = Ground(max(0.0, ground.flicker - clean.flicker), max(0.0, ground.drift - clean.drift),
                    max(0.0, ground.noise - clean.noise))  # fmt: skip
    return StoryScore(
        colour=_mean([value for one in seen for value in one.colours]),
        shape=_mean([value for one in seen for value in one.shapes]),
        motion=motion, events=events, persistence=_mean([one.persistence for one in seen]), frozen=frozen,
        repeated=repeated, pace=pace, late=_mean([one.late for one in seen]), ground=beyond, slip=slip,
        fault=next((name for name in FAULTS if found[name]), ""),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _places(story: Story) -> list[list[int]]:
    """The actors of each part of the frame, by their numbers: those of one part follow each other."""
    parts: dict[tuple[float, ...], list[int]] = {}
    for number, actor in enumerate(story.actors):
        parts.setdefault(actor.figure.region, []).append(number)
    return list(parts.values())


def _without_camera(frames_THWC: NDArray[np.uint8], story: Story) -> NDArray[np.uint8]:
    """Frames as they would be from where the camera was first: by whole pixels, edges repeated."""
    if story.camera == (0.0, 0.0):
        return frames_THWC
    side = min(frames_THWC.shape[1:3])
    moved = []
    for t, frame in enumerate(frames_THWC):
        x, y = (round(side * value) for value in story.camera_at(t))
        rows = np.clip(np.arange(frame.shape[0]) + y, 0, frame.shape[0] - 1)
        columns = np.clip(np.arange(frame.shape[1]) + x, 0, frame.shape[1] - 1)
        moved.append(frame[rows][:, columns])
    return np.stack(moved)


@dataclass(frozen=True)
class _Seen:
    """What was seen in one part of the frame, over all of its actors."""

    colours: list[float]
    shapes: list[float]
    placed: int
    anywhere: int
    total: int
    persistence: float
    repeated: float
    pace: float
    late: float
    there: NDArray[np.bool_]


def _look(
    frames_THWC: NDArray[np.uint8], story: Story, tracks: tuple[StoryTrack, ...], members: list[int]
) -> _Seen:  # fmt: skip
    figures = [story.actors[number].figure for number in members]
    (part,) = split_frame(frames_THWC, figures[:1])
    colours, shapes, seen_motions, asked_motions, placed, right = [], [], Counter[str](), Counter[str](), 0, 0
    repeated, late, pace = 0.0, 0.0, 1.0
    count, height, width, _ = frames_THWC.shape
    side = min(height, width)
    present = np.any([tracks[number].present for number in members], axis=0)
    whole = find_figure(frames_THWC, part, 0.0)
    there = np.zeros(count, bool)
    if whole is not None:
        there[whole.frames] = True
    wanted = _colours_of(story, tracks, members, count)
    if whole is not None:
        for place, frame in enumerate(whole.frames):
            right += bool(present[frame]) and nearest_colour(whole.colours[place]) in wanted[frame]
    right += int((~present & ~there).sum())
    for number in members:
        actor, track = story.actors[number], tracks[number]
        first, last = UNIT * actor.enters, UNIT * (actor.leaves or story.units)
        own = _during(whole, first, last)
        asked = [(unit, actor.event_at(unit)) for unit in range(actor.enters, actor.leaves or story.units)]
        asked_motions.update(event.motion for _, event in asked if event is not None)
        if own is None:
            colours.append(0.0)
            shapes.append(0.0)
            continue
        overlap = fit_templates(own.outlines)
        shape = shape_of(own, overlap)
        colours.append(float(nearest_colour(own.colour) == actor.figure.colour))
        shapes.append(float(shape == actor.figure.shape))
        for unit, event in asked:
            if event is None:
                continue
            motion, strayed = _motion_in(whole, unit, actor, event, shape, frames_THWC.shape)
            seen_motions[motion] += 1
            placed += motion == event.motion and strayed < STRAYED_LIMIT
        path, truth = _signal(own, overlap, shape, side), _truth_of(track, shape, side)
        shortest = max(4, (last - first) // 8)
        here = truth[first : last + 1][np.array(track.present[first : last + 1])]
        repeated = max(repeated, repetition(path, shortest) - repetition(here, shortest))
        late = max(late, _lateness(own.frames, path, truth, first))
        rate = _pace(own.frames, path, truth, first)
        pace = rate if abs(np.log(rate)) > abs(np.log(pace)) else pace
    total = sum(asked_motions.values())
    anywhere = sum((seen_motions & asked_motions).values())
    return _Seen(
        colours, shapes, placed, anywhere, total, right / count, max(0.0, repeated), pace, late, there | ~present
    )


def _colours_of(story: Story, tracks: tuple[StoryTrack, ...], members: list[int], count: int) -> list[set[str]]:
    return [{story.actors[n].figure.colour for n in members if tracks[n].present[t]} for t in range(count)]


def _during(sighting: Sighting | None, first: int, last: int) -> Sighting | None:
    """What was seen from one frame to another, both counted, if anything."""
    if sighting is None:
        return None
    which = np.flatnonzero((sighting.frames >= first) & (sighting.frames <= last))
    if len(which) < 3:
        return None
    return Sighting(sighting.frames[which], sighting.centres[which], sighting.radii[which],
                    [sighting.outlines[i] for i in which], sighting.colours[which], sighting.alone[which])  # fmt: skip


def _motion_in(
    whole: Sighting | None, unit: int, actor: Actor, event: Event, shape: str, size: tuple[int, ...]
) -> tuple[str, float]:
    """Which motion a unit shows, and how far it strays from the one that was asked for."""
    own = _during(whole, UNIT * unit, UNIT * (unit + 1))
    if own is None:
        return "nothing", 1.0
    if event.motion in LEAVING + COMING:
        return _crossing(own, unit), 0.0
    frames = own.frames - UNIT * unit
    if len(frames) < 0.8 * (UNIT + 1):
        return "nothing", 1.0
    local = Sighting(frames, own.centres, own.radii, own.outlines, own.colours, own.alone)
    figure = replace(actor.figure, motion=event.motion, speed=event.speed)
    if actor.goes_on:
        costs = _costs_going_on(local, actor, event, unit, shape, size)
    else:
        costs = motion_costs(local, figure, figure.region, shape, fit_templates(local.outlines), (UNIT + 1, *size[1:]))
    motion = min(costs, key=costs.__getitem__)
    return motion, costs.get(event.motion, 1.0)


def _costs_going_on(
    local: Sighting, actor: Actor, event: Event, unit: int, shape: str, size: tuple[int, ...]
) -> dict[str, float]:  # fmt: skip
    """Like :func:`motion_costs`, for a motion of which a unit may show any part: the one asked for is held against its
    own path at this time."""
    costs = motion_costs(local, actor.figure, actor.figure.region, shape, fit_templates(local.outlines),
                         (UNIT + 1, *size[1:]))  # fmt: skip
    from radial_finetune.world.story import state_at

    states = [state_at(actor, UNIT * unit + frame, size[2] / size[1]) for frame in local.frames]
    truth = np.array([state[:2] for state in states if state is not None])
    path, expected = local.centres - local.centres.mean(0), truth - truth.mean(0)
    own = float(np.sqrt(((path - expected) ** 2).sum(1).mean()))
    if event.motion == "spin":
        return costs
    costs[event.motion] = min(own, costs.get(event.motion, np.inf))
    return costs


def _crossing(own: Sighting, unit: int) -> str:
    """Whether something leaves in a unit, or comes, and on which side."""
    frames = own.frames - UNIT * unit
    way = float(own.centres[-1, 0] - own.centres[0, 0])
    if frames[0] > 1 or frames[-1] > UNIT - 2:  # it was not there at first, or is at the end
        return "come-left" if way > 0 else "come-right"
    return "leave-left" if way < 0 else "leave-right"


_Signal = NDArray[np.float64]  # [T, 5]: x, y, twice the radius in shorter sides; the turn as a point on a small circle
_TURN = 0.08


def _signal(own: Sighting, overlap: NDArray[np.float32], shape: str, side: int) -> _Signal:
    names, _ = templates()
    of_shape = [i for i, (name, _) in enumerate(names) if name == shape]
    turn = SYMMETRY[shape] * np.array([names[of_shape[k]][1] for k in overlap[:, of_shape].argmax(1)])
    size = _TURN if SYMMETRY[shape] else 0.0
    return np.column_stack([own.centres, 2 * own.radii / side, size * np.cos(turn), size * np.sin(turn)])


def _truth_of(track: StoryTrack, shape: str, side: int) -> _Signal:
    turn = SYMMETRY[shape] * np.array(track.angle)
    size = _TURN if SYMMETRY[shape] else 0.0
    xyr = np.stack([track.x, track.y, 2 * np.array(track.radius)], -1) / side
    return np.column_stack([xyr, size * np.cos(turn), size * np.sin(turn)])


def _apart(path: _Signal, truth: _Signal) -> float:
    """Distance of a path from another, wherever both lie and however large they are."""
    both = path - truth
    both[:, 2] = path[:, 2] / path[:, 2].mean() * truth[:, 2].mean() - truth[:, 2]
    both[:, :2] -= both[:, :2].mean(0)
    return float(np.sqrt((both**2).sum(1).mean()))


def _pace(frames: NDArray[np.int64], path: _Signal, truth: _Signal, first: int) -> float:
    """The rate at which the truth would be played to look like this; 1 unless another is clearly nearer."""
    costs = {
        rate: _apart(path, truth[np.clip(np.round(first + (frames - first) * rate).astype(int), 0, len(truth) - 1)])
        for rate in _RATES
    }
    best = min(costs, key=costs.__getitem__)
    return best if costs[best] < 0.5 * costs[1.0] and costs[best] < STRAYED_LIMIT else 1.0


def _lateness(frames: NDArray[np.int64], path: _Signal, truth: _Signal, first: int) -> float:
    """By how many units the whole path is before or behind its time, where another time fits better."""
    costs = {
        shift: _apart(path, truth[np.clip(frames - shift, first, len(truth) - 1)])
        for shift in range(-UNIT // 2, UNIT // 2 + 1)
    }
    best = min(costs, key=costs.__getitem__)
    return abs(best) / UNIT if costs[best] < 0.8 * costs[0] else 0.0


def _frozen(frames_THWC: NDArray[np.uint8], truth_THWC: NDArray[np.uint8], there_T: NDArray[np.bool_]) -> float:
    """How much more of a clip stands still, for eight frames or longer, than of its truth."""
    return max(0, _still(frames_THWC, there_T) - _still(truth_THWC, there_T)) / len(frames_THWC)


def _still(frames_THWC: NDArray[np.uint8], there_T: NDArray[np.bool_]) -> int:
    apart = [np.abs(b.astype(np.int16) - a).mean() for a, b in itertools.pairwise(frames_THWC)]
    runs = [len(list(run)) for still, run in itertools.groupby((np.array(apart) < _STILL) & there_T[1:]) if still]
    return sum(run for run in runs if run >= 8)
