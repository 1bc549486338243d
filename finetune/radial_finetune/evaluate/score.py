"""Colour, shape and motion of every figure in a clip, read with OpenCV and held against a scene.

Grounds are grey, so figures are what has colour. A figure's shape is the template that its outline fits best, its
motion the one of the world's motions whose path it follows best.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from radial_finetune.world.render import signed_distance
from radial_finetune.world.scene import COLOURS, MOTIONS, SHAPES, SPEEDS, Figure, Scene, pose

_CHROMA = 70  # of 255; ground is grey, figures are vivid
_TEMPLATE = 48  # pixels a side
_TEMPLATE_AREA = 520.0  # pixels that every outline is scaled to
SYMMETRY = {"circle": 0, "ring": 0, "square": 4, "triangle": 3, "star": 5, "cross": 4}
_ANGLES = 24  # templates over one symmetry turn


STRAYED_LIMIT = 0.1  # ground truth strays by 0.03 at most; paths that are looped four times by 0.1 to 0.4


@dataclass(frozen=True)
class FigureScore:
    """Whether one figure came out as asked, and what was seen.

    Attributes:
        strayed: how far the figure's path, size and turn lie from the asked motion over the whole clip, in shorter
            sides: a motion that is looped strays, even where no other fits better.
        persistence: share of frames in which the figure is there, in its colour, and nothing else is in its place.
        repetition: how much the clip repeats itself where the truth does not, from 0 to 1; see :func:`repetition`.
    """

    colour: bool
    shape: bool
    motion: bool
    seen: tuple[str, str, str]
    strayed: float = 1.0
    persistence: float = 0.0
    repetition: float = 0.0

    @property
    def all(self) -> bool:
        return self.colour and self.shape and self.motion

    @property
    def whole_motion(self) -> bool:
        """Whether the motion is the asked one from the first frame to the last."""
        return self.motion and self.strayed < STRAYED_LIMIT


@dataclass(frozen=True)
class Sighting:
    """One figure over the frames it was found in: centre, area, outline, colour."""

    frames: NDArray[np.int64]
    centres: NDArray[np.float64]  # [T, 2], x and y in shorter sides
    radii: NDArray[np.float64]  # [T], in pixels, of a disc of the same area
    outlines: list[NDArray[np.float32]]  # scaled to one area
    colours: NDArray[np.float64]  # [T, 3]
    alone: NDArray[np.bool_]  # [T], whether no other patch is in its part of the frame

    @property
    def colour(self) -> NDArray[np.float64]:
        median: NDArray[np.float64] = np.median(self.colours, axis=0)
        return median


def use_one_thread() -> None:
    """For a scoring process that is one of many: threads of its own would fight over the same cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def score_clip(frames_THWC: NDArray[np.uint8], scene: Scene) -> tuple[FigureScore, ...]:
    """Score every figure of a scene; where two could be either, the better assignment counts."""
    halves = split_frame(frames_THWC, scene.figures)
    sightings = [find_figure(frames_THWC, half) for half in halves]
    best: tuple[FigureScore, ...] = ()
    for order in itertools.permutations(range(len(sightings))):
        scores = tuple(
            _judge(sightings[place], figure, scene.figures[place].region, frames_THWC.shape)
            for place, figure in zip(order, scene.figures, strict=True)
        )
        if not best or _rank(scores) > _rank(best):
            best = scores
    return best


def _rank(scores: tuple[FigureScore, ...]) -> tuple[int, int]:
    return sum(s.all for s in scores), sum(s.colour + s.shape + s.motion for s in scores)


def split_frame(frames_THWC: NDArray[np.uint8], figures: Sequence[Figure]) -> list[tuple[slice, slice]]:
    """The part of the frame of each figure, as slices over rows and columns."""
    _, height, width, _ = frames_THWC.shape
    parts = []
    for figure in figures:
        left, top, right, bottom = figure.region
        parts.append((slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))))
    return parts


def find_figure(frames_THWC: NDArray[np.uint8], part: tuple[slice, slice], share: float = 0.8) -> Sighting | None:
    """The largest coloured patch of every frame in one part; None when it is in less than a ``share`` of the frames."""
    side = min(frames_THWC.shape[1:3])
    found, centres, radii, outlines, colours, alone = [], [], [], [], [], []
    for index, frame in enumerate(frames_THWC):
        image = frame[part]
        chroma = (image.max(-1).astype(np.int16) - image.min(-1)).astype(np.uint8)
        mask = (chroma > _CHROMA).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if count < 2:
            continue
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        area = float(stats[largest, cv2.CC_STAT_AREA])
        if area < 20:
            continue
        patch = (labels == largest).astype(np.uint8)
        moments = cv2.moments(patch, binaryImage=True)
        x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
        found.append(index)
        centres.append(((x + part[1].start + 0.5) / side, (y + part[0].start + 0.5) / side))
        radii.append(np.sqrt(area / np.pi))
        outlines.append(_normalize(patch, x, y, area))
        core = cv2.erode(patch, np.ones((3, 3), np.uint8))
        colours.append(image[(core if core.any() else patch) > 0].mean(0))
        alone.append(int((stats[1:, cv2.CC_STAT_AREA] >= 20).sum()) == 1)
    if not found or len(found) < share * len(frames_THWC):
        return None
    return Sighting(np.array(found), np.array(centres), np.array(radii), outlines, np.array(colours), np.array(alone))


def _normalize(mask: NDArray[np.uint8], x: float, y: float, area: float) -> NDArray[np.float32]:
    """An outline moved to the middle of a template and scaled to its area."""
    scale = np.sqrt(_TEMPLATE_AREA / area)
    middle = _TEMPLATE / 2 - 0.5
    matrix = np.array([[scale, 0, middle - scale * x], [0, scale, middle - scale * y]])
    return cv2.warpAffine(mask.astype(np.float32), matrix, (_TEMPLATE, _TEMPLATE), flags=cv2.INTER_LINEAR)


@functools.cache
def templates() -> tuple[list[tuple[str, float]], NDArray[np.float32]]:
    """Every shape at every angle of its symmetry, as (shape, angle) and flat masks ``[N, side * side]``."""
    axis = (torch.arange(4 * _TEMPLATE) - 2 * _TEMPLATE + 0.5) / _TEMPLATE  # a large canvas, then normalised
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    names, masks = [], []
    for shape in SHAPES:
        order = SYMMETRY[shape]
        for step in range(_ANGLES if order else 1):
            angle = 2 * np.pi / max(order, 1) * step / _ANGLES
            cos, sin = np.cos(angle), np.sin(angle)
            inside = (signed_distance(shape, (cos * x + sin * y) * 1.2, (cos * y - sin * x) * 1.2) < 0).numpy()
            moments = cv2.moments(inside.astype(np.uint8), binaryImage=True)
            area = moments["m00"]
            mask = _normalize(inside.astype(np.uint8), moments["m10"] / area, moments["m01"] / area, area)
            names.append((shape, angle))
            masks.append(mask.ravel())
    return names, np.stack(masks)


def fit_templates(outlines: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Overlap (intersection over union) of every outline with every template, ``[T, N]``."""
    _, masks = templates()
    flat = np.stack([outline.ravel() for outline in outlines])
    both = flat @ masks.T
    return both / (flat.sum(1)[:, None] + masks.sum(1)[None] - both)


def _judge(
    sighting: Sighting | None, figure: Figure, region: tuple[float, float, float, float], size: tuple[int, ...]
) -> FigureScore:
    if sighting is None:
        return FigureScore(False, False, False, ("nothing", "nothing", "nothing"))
    colour = nearest_colour(sighting.colour)

    overlap = fit_templates(sighting.outlines)
    shape = shape_of(sighting, overlap)
    costs = motion_costs(sighting, figure, region, shape, overlap, size)
    motion = min(costs, key=costs.__getitem__)
    right = [
        one and nearest_colour(c) == figure.colour for one, c in zip(sighting.alone, sighting.colours, strict=True)
    ]
    return FigureScore(
        colour == figure.colour, shape == figure.shape, motion == figure.motion, (colour, shape, motion),
        strayed=costs.get(figure.motion, 1.0), persistence=sum(right) / size[0],
        repetition=_repeated(sighting, replace(figure, region=region), size),
    )  # fmt: skip


def shape_of(sighting: Sighting, overlap: NDArray[np.float32]) -> str:
    """The shape whose template a figure's outlines fit best; the larger it is, the more its outline says."""
    names, _ = templates()
    weight = sighting.radii**2
    by_shape = {
        shape: float(weight @ overlap[:, [i for i, (name, _) in enumerate(names) if name == shape]].max(1))
        for shape in SHAPES
    }
    return max(by_shape, key=by_shape.__getitem__)


def nearest_colour(colour: NDArray[np.float64]) -> str:
    distances = {name: np.linalg.norm(colour - np.array(rgb)) for name, rgb in COLOURS.items()}
    return min(distances, key=distances.__getitem__)


def _repeated(sighting: Sighting, figure: Figure, size: tuple[int, ...]) -> float:
    """How much more a figure's path and growth repeat themselves than the truth's do."""
    num_frames, height, width, _ = size
    seen = np.column_stack([sighting.centres, 2 * sighting.radii / min(height, width)])
    truth = np.array([pose(figure, t / max(num_frames - 1, 1), width / height)[:3] for t in sighting.frames])
    shortest = max(4, num_frames // 8)
    return max(0.0, repetition(seen, shortest) - repetition(truth * [1, 1, 2], shortest))


def repetition(signal_TD: NDArray[np.float64], shortest: int) -> float:
    """How much a clip repeats itself: 1 where it comes back to itself exactly after some period, 0 where it never does.

    For every lag from ``shortest`` to half of the clip, the mean square difference between instants that far apart is
    set against twice the variance, which is what it would be if they had nothing to do with each other, and against
    what it was at shorter lags: only what went away can come back.
    """
    count = len(signal_TD)
    variance = float(signal_TD.var(axis=0).sum())
    if count < 2 * shortest or variance < 1e-4:
        return 0.0  # nothing moves
    lags = range(1, count // 2 + 1)
    apart = np.array([((signal_TD[lag:] - signal_TD[:-lag]) ** 2).sum(1).mean() for lag in lags]) / (2 * variance)
    risen = np.maximum.accumulate(apart)  # how far it has been away at any shorter lag
    back = np.where(np.arange(1, len(apart) + 1) >= shortest, risen - apart, 0.0)
    return float(np.clip(back.max(), 0.0, 1.0))


def motion_costs(
    sighting: Sighting,
    figure: Figure,
    region: tuple[float, float, float, float],
    shape: str,
    overlap: NDArray[np.float32],
    size: tuple[int, ...],
) -> dict[str, float]:
    """How far path, growth and turn lie from each motion's, at the speed and in the direction that fit best."""
    num_frames, height, width, _ = size
    times = sighting.frames / max(num_frames - 1, 1)
    side = min(height, width)
    order = SYMMETRY[shape]
    names, _ = templates()
    own = [i for i, (name, _) in enumerate(names) if name == shape]
    angles = np.array([names[own[k]][1] for k in overlap[:, own].argmax(1)])
    path = sighting.centres - sighting.centres.mean(0)
    radii = sighting.radii / side
    costs: dict[str, float] = {}
    for motion, speed, clockwise in itertools.product(MOTIONS, SPEEDS, (True, False)):
        if motion == "spin" and not order:
            continue  # a round figure's turn cannot be seen
        model = replace(figure, motion=motion, speed=speed, clockwise=clockwise, region=region, offset=(0.0, 0.0))
        truth = np.array([pose(model, t, width / height) for t in times])
        expected = truth[:, :2] - truth[:, :2].mean(0)
        growth = truth[:, 2] * radii.mean() / truth[:, 2].mean()
        cost = np.sqrt(((path - expected) ** 2).sum(1).mean()) + 2 * np.sqrt(((radii - growth) ** 2).mean())
        if order:
            turn = np.abs(np.exp(1j * order * (angles - truth[:, 3])).mean())
            cost += 0.06 * (1 - turn)
        costs[motion] = min(costs.get(motion, np.inf), float(cost))
    return costs
