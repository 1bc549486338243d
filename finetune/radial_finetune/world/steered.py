"""Clips of the shapes world that more than words decide: signals, holes that are made anew, frames and pictures that
are given, each with its exact truth.

Lengths are pixels. Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from radial.video.control import signals_of
from radial_finetune.world.caption import GROUND_WORDS, JOINS, MOTION_WORDS, SPEED_WORDS, name_figure
from radial_finetune.world.render import Track, render, to_pixels, tracks
from radial_finetune.world.scene import Figure, Scene, draw_scene

SIGNALS = ("path", "canny", "grey", "flow")
TASKS = (*SIGNALS, "inpaint", "keyframes", "text")
DOT = 0.05  # radius of the dot that shows a path, in shorter sides
_FREE = {"path": 0.7, "canny": 0.4, "grey": 0.4, "flow": 0.4}  # share of paths that no motion of the world follows
_TWO_FIGURES = 0.4
_KEYED = 0.15  # of signals that go together with the first frame
_NAMELESS = 0.4  # of prompts that leave out what a given frame or picture shows
_GROUNDS = ("white", "black", "grey")  # of pictures of a figure

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Steered:
    """A clip and what steers it.

    Attributes:
        scene: its figures and their ground.
        truth: where each figure is.
        task: one of :data:`TASKS`; a signal's name where one is followed.
        hole_T4: (left, top, right, bottom) of the box that is made anew in each frame, or, ``outside``, is kept.
        keyframes: numbers of the frames that are given.
        picture: the figure as a picture of it shows it, its place in that and its ground.
    """

    scene: Scene
    truth: tuple[Track, ...]
    prompt: str
    task: str
    num_frames: int
    side: int
    hole_T4: NDArray[np.float64] | None = None
    outside: bool = False
    keyframes: tuple[int, ...] = ()
    picture: tuple[Figure, Track, str] | None = None

    def frames(self) -> Pixels:
        """The clip itself, ``[T, H, W, 3]``."""
        return to_pixels(render([self.scene], self.num_frames, self.side, self.side, truths=[self.truth])[0])

    def signal(self) -> Pixels | None:
        """The control that is followed, ``[T, H, W, 3]``; None where there is none."""
        if self.task not in SIGNALS:
            return None
        if self.task == "path":
            return draw_paths(self.truth, self.side)
        return np.stack(list(signals_of(self.frames(), self.task)))  # type: ignore[arg-type]

    def hole(self) -> NDArray[np.bool_] | None:
        """Where the clip is made anew, ``[T, H, W]``; None where no part of it is given."""
        if self.hole_T4 is None:
            return None
        places = np.arange(self.side) + 0.5
        left, top, right, bottom = (self.hole_T4[:, k, None] for k in range(4))
        rows_TH, columns_TW = (places > top) & (places < bottom), (places > left) & (places < right)
        inside: NDArray[np.bool_] = rows_TH[:, :, None] & columns_TW[:, None, :]
        return ~inside if self.outside else inside

    def reference(self) -> Pixels | None:
        """A picture of the figure, ``[H, W, 3]``; None where none is given."""
        if self.picture is None:
            return None
        figure, track, ground = self.picture
        return to_pixels(render([Scene((figure,), ground)], 1, self.side, self.side, truths=[[track]])[0])[0]


def draw_paths(truth: tuple[Track, ...], side: int) -> Pixels:
    """A white dot on black for each figure, where it is: ``[T, H, W, 3]``."""
    place = np.arange(side) + 0.5
    cover_THW = np.zeros((len(truth[0].x), side, side))
    for track in truth:
        x, y = np.array(track.x)[:, None, None], np.array(track.y)[:, None, None]
        away = np.hypot(place[None, None, :] - x, place[None, :, None] - y)
        cover_THW = np.maximum(cover_THW, np.clip(DOT * side - away + 0.5, 0, 1))
    return np.repeat((cover_THW * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def draw_steered(
    rng: random.Random, task: str, num_frames: int = 33, side: int = 128, *, referenced: bool = False
) -> Steered:
    """Draw a clip and what steers it.

    Args:
        referenced: whether a picture of its figure is given, too; it then has one figure.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    free = rng.random() < _FREE.get(task, 0.0)
    scene = draw_scene(rng, 1 if referenced or free or rng.random() >= _TWO_FIGURES else 2)
    truth = tracks(scene, num_frames, side, side)
    if free:
        scene = replace(scene, figures=(replace(scene.figures[0], motion="rest"),))
        truth = (draw_track(rng, scene.figures[0], num_frames, side),)
    keyframes = _draw_keyframes(rng, num_frames) if task == "keyframes" else ()
    if task in SIGNALS and rng.random() < _KEYED:
        keyframes = (0,)
    named = not ((referenced or keyframes) and rng.random() < _NAMELESS)
    drawn = Steered(
        scene, truth, caption(scene, rng, named=named, moving=not free), task, num_frames, side, keyframes=keyframes
    )
    if task == "inpaint":
        kinds = ("follow", "swept", "part" if len(truth) == 2 else "swept", "anywhere", "outside")
        drawn = dig(drawn, rng, rng.choice(kinds))
    return show(drawn, rng) if referenced else drawn


def caption(scene: Scene, rng: random.Random, *, named: bool = True, moving: bool = True) -> str:
    """A scene in words, without its figures or their motions where these are said otherwise."""
    told = []
    for figure in scene.figures:
        words = [name_figure(figure, rng)] if named else []
        if moving:
            words += [rng.choice(MOTION_WORDS[figure.motion])]
            words += [rng.choice(SPEED_WORDS[figure.speed])] if figure.motion != "rest" else []
        told.append(" ".join(filter(None, words)))
    return f"{rng.choice(JOINS).join(filter(None, told))} {rng.choice(GROUND_WORDS[scene.background])}".strip()


def draw_track(rng: random.Random, figure: Figure, num_frames: int, side: int) -> Track:
    """A way across the frame that no motion of the world follows: a cubic Bezier curve within it."""
    room = figure.radius + 0.02
    control_42 = np.array([[rng.uniform(room, 1 - room) for _ in range(2)] for _ in range(4)])
    time = np.linspace(0, 1, num_frames)[:, None]
    weights_T4 = np.hstack([(1 - time) ** 3, 3 * time * (1 - time) ** 2, 3 * time**2 * (1 - time), time**3])
    path_T2 = weights_T4 @ control_42 * side
    radius, angle = (figure.radius * side,) * num_frames, (figure.tilt,) * num_frames
    return Track(tuple(path_T2[:, 0].tolist()), tuple(path_T2[:, 1].tolist()), radius, angle)


def dig(drawn: Steered, rng: random.Random, kind: str) -> Steered:
    """Have a part of a clip made anew.

    Args:
        kind: ``follow``, a box that goes with a figure; ``swept``, one about its whole way; ``part``, its half of the
            frame; ``anywhere``; ``outside``, all but a box.
    """
    side, number = drawn.side, rng.randrange(len(drawn.truth))
    track = drawn.truth[number]
    centre_T2, radius_T1 = np.array([track.x, track.y]).T, np.array(track.radius)[:, None]
    reach_T1 = radius_T1 * rng.uniform(1.3, 1.8)
    follow_T4 = np.hstack([centre_T2 - reach_T1, centre_T2 + reach_T1])
    if kind == "follow":
        box_T4 = follow_T4
    elif kind == "swept":
        box_T4 = np.tile(np.concatenate([follow_T4[:, :2].min(0), follow_T4[:, 2:].max(0)]), (len(follow_T4), 1))
    elif kind == "part":
        box_T4 = np.tile(np.array(drawn.scene.figures[number].region) * side, (len(follow_T4), 1))
    else:
        size = np.array([rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8)])
        corner = np.array([rng.uniform(0, 1 - extent) for extent in size])
        box_T4 = np.tile(np.concatenate([corner, corner + size]) * side, (len(follow_T4), 1))
    return replace(drawn, hole_T4=box_T4, outside=kind == "outside")


def show(drawn: Steered, rng: random.Random) -> Steered:
    """Give a picture of a clip's only figure."""
    (figure,) = drawn.scene.figures
    radius = rng.uniform(0.14, 0.3)
    x, y = (rng.uniform(radius + 0.05, 0.95 - radius) for _ in range(2))
    track = Track((x * drawn.side,), (y * drawn.side,), (radius * drawn.side,), (rng.uniform(-0.2, 0.2),))
    return replace(drawn, picture=(figure, track, rng.choice(_GROUNDS)))


def _draw_keyframes(rng: random.Random, num_frames: int) -> tuple[int, ...]:
    last = num_frames - 1
    kind = rng.random()
    if kind < 0.5:
        return (0,)
    if kind < 0.7:
        return (0, last)
    return tuple(sorted(rng.sample(range(num_frames), min(rng.randint(1, 3), num_frames))))
