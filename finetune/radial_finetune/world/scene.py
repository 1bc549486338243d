"""What happens in a clip: figures, their motions, and the ground they move on.

Units: lengths are fractions of the frame's shorter side, time runs from 0 to 1 over the whole clip, angles are
radians. A motion spans the clip whatever its length, so a clip that repeats itself is measurably wrong.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 30),
    "orange": (250, 135, 15),
    "yellow": (245, 225, 25),
    "green": (30, 170, 50),
    "cyan": (20, 205, 215),
    "blue": (35, 75, 230),
    "purple": (130, 40, 195),
    "pink": (250, 90, 180),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES: dict[str, float] = {"small": 0.125, "medium": 0.16, "large": 0.205}
MOTIONS = (
    "right",
    "left",
    "rise",
    "fall",
    "bounce",
    "sway",
    "orbit",
    "zigzag",
    "spin",
    "grow",
    "shrink",
    "rest",
)
SPEEDS = ("slow", "normal", "fast")
# Greys only: every colour belongs to a figure, so colour alone separates figure from ground.
BACKGROUNDS = ("black", "grey", "white", "striped", "checkered", "speckled")

# A turn of these shows nothing, so they never spin.
ROUND = ("circle", "ring")
SIDEWAYS = ("right", "left", "sway", "zigzag")
SCALES = (0.65, 0.55, 0.45)  # that a figure grows from or shrinks to, by speed


@dataclass(frozen=True)
class Figure:
    """One moving shape.

    Attributes:
        region: (left, top, right, bottom), the part of the frame the figure stays in, each in 0..1 of that side.
        offset: (x, y) in -1..1, where in the free part of its region the figure sits or passes.
        tilt: the angle at the clip's start.
        clockwise: direction of a spin or an orbit.
    """

    shape: str
    colour: str
    size: str
    motion: str
    speed: str
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    tilt: float = 0.0
    clockwise: bool = True
    scale: float = 1.0  # figures that share a frame are drawn smaller

    @property
    def radius(self) -> float:
        """Largest radius over the clip, as a fraction of the frame's shorter side."""
        return SIZES[self.size] * self.scale


@dataclass(frozen=True)
class Scene:
    """One clip's truth: its figures and its ground. ``texture_seed`` fixes stripes, squares and speckles."""

    figures: tuple[Figure, ...]
    background: str
    texture_seed: int = 0


def draw_scene(rng: random.Random, figures: int = 1) -> Scene:
    """Draw a random scene with one or two figures. Two figures share the frame half and half, the first named at
    the left or on top; they lie one above the other when any of them travels sideways."""
    if figures not in (1, 2):
        raise ValueError(f"a scene has 1 or 2 figures, not {figures}")
    kinds = [_draw_kind(rng) for _ in range(figures)]
    if figures == 1:
        regions, scale = [(0.0, 0.0, 1.0, 1.0)], 1.0
    else:
        while kinds[0][:2] == kinds[1][:2]:  # two red stars could not be told apart
            kinds[1] = _draw_kind(rng)
        stacked = any(kind[3] in SIDEWAYS for kind in kinds)
        regions = (
            [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)] if stacked else [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
        )
        scale = 0.9
    drawn = tuple(
        Figure(
            *kind,
            region=region,
            offset=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
            tilt=rng.uniform(-0.12, 0.12),
            clockwise=rng.random() < 0.5,
            scale=scale,
        )
        for kind, region in zip(kinds, regions, strict=True)
    )
    return Scene(drawn, rng.choice(BACKGROUNDS), rng.getrandbits(31))


def _draw_kind(rng: random.Random) -> tuple[str, str, str, str, str]:
    motion = rng.choice(MOTIONS)
    shape = rng.choice([s for s in SHAPES if motion != "spin" or s not in ROUND])
    return shape, rng.choice(list(COLOURS)), rng.choice(list(SIZES)), motion, rng.choice(SPEEDS)


def pose(figure: Figure, time: float, aspect: float = 1.0) -> tuple[float, float, float, float]:
    """Where a figure is at ``time`` in 0..1: (x, y, radius, angle), lengths in shorter sides.

    Args:
        aspect: frame width over height; x runs to ``max(aspect, 1)``, y to ``max(1 / aspect, 1)``.
    """
    width, height = max(aspect, 1.0), max(1 / aspect, 1.0)
    left, top, right, bottom = figure.region
    full = figure.radius
    pace = SPEEDS.index(figure.speed)
    # Half the room the centre has on each axis.
    room_x = max((right - left) * width / 2 - full - 0.02, 0.01)
    room_y = max((bottom - top) * height / 2 - full - 0.02, 0.01)
    middle_x, middle_y = (left + right) * width / 2, (top + bottom) * height / 2
    x = middle_x + 0.6 * figure.offset[0] * room_x
    y = middle_y + 0.6 * figure.offset[1] * room_y
    radius, angle = full, figure.tilt
    turn = 1.0 if figure.clockwise else -1.0

    def travel(room: float, offset: float) -> float:
        """From one end of a stretch to the other; the slow cover half of the room, the fast all of it."""
        reach = (0.55, 0.78, 1.0)[pace] * room
        return (2 * time - 1) * reach + offset * (room - reach)

    match figure.motion:
        case "right":
            x = middle_x + travel(room_x, figure.offset[0])
        case "left":
            x = middle_x - travel(room_x, figure.offset[0])
        case "rise":
            y = middle_y - travel(room_y, figure.offset[1])
        case "fall":
            y = middle_y + travel(room_y, figure.offset[1])
        case "bounce":
            hops = (1, 2, 3)[pace]
            y = middle_y + room_y - 2 * room_y * 0.9 * abs(math.sin(math.pi * hops * time))
        case "sway":
            cycles = (1.0, 1.5, 2.0)[pace]
            x = middle_x + 0.8 * room_x * math.sin(2 * math.pi * cycles * time)
        case "orbit":
            turns = (0.75, 1.0, 1.5)[pace]
            reach = min(room_x, room_y) * 0.85
            phase = turn * 2 * math.pi * turns * time - math.pi / 2
            x, y = middle_x + reach * math.cos(phase), middle_y + reach * math.sin(phase)
        case "zigzag":
            zigs = (1.5, 2.0, 3.0)[pace]
            x = middle_x + (2 * time - 1) * room_x
            y = middle_y + 0.8 * room_y * (1 - 4 * abs((time * zigs) % 1.0 - 0.5))
        case "spin":
            angle = figure.tilt + turn * 2 * math.pi * (0.5, 0.75, 1.0)[pace] * time
        case "grow" | "shrink":
            start = SCALES[pace]
            progress = time if figure.motion == "grow" else 1 - time
            radius = full * (start + (1 - start) * progress)
    return x, y, radius, angle
