"""The sizes that clips are cut to: as they are named, or spread over the shapes that cameras have."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from radial.errors import RequestError

# What phones, cameras and films have, from wide to square; each lies on its side, too.
_SHAPES = (Fraction(21, 9), Fraction(16, 9), Fraction(3, 2), Fraction(4, 3), Fraction(1))
_MOST_PIXELS = 8192 * 8192


@dataclass(frozen=True, order=True)
class Bucket:
    """A size that clips are cut to, so that they can share a batch."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"


def parse_bucket(text: str) -> Bucket:
    """A size as FRAMESxHEIGHTxWIDTH.

    Raises:
        RequestError: the text is no such size.
    """
    numbers = _numbers(text, 3)
    if numbers is None:
        raise RequestError(f"--bucket takes FRAMESxHEIGHTxWIDTH such as 81x480x832, not {text!r}")
    return Bucket(*numbers)


def parse_area(text: str) -> tuple[int, int]:
    """Height and width of a frame as HEIGHTxWIDTH.

    Raises:
        RequestError: the text is no such size.
    """
    numbers = _numbers(text, 2)
    if numbers is None or numbers[0] * numbers[1] > _MOST_PIXELS:
        raise RequestError(f"--area takes HEIGHTxWIDTH such as 480x832, not {text!r}")
    return numbers[0], numbers[1]


def _numbers(text: str, count: int) -> list[int] | None:
    parts = text.lower().split("x")
    if len(parts) != count or not all(p.isascii() and p.isdigit() and len(p) < 8 and int(p) > 0 for p in parts):
        return None
    return [int(part) for part in parts]


def spread_sizes(area: tuple[int, int], multiple: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Heights and widths of no more pixels than an area, one for each shape that cameras have: 21:9, 16:9, 3:2, 4:3,
    square, and these on their side; from wide to high. Shapes for which the multiples allow but one size share it.

    Args:
        area: height and width whose product is the most pixels of a frame.
        multiple: what heights and widths are multiples of.

    Raises:
        RequestError: the area is too small for a square of one multiple.
    """
    budget, (down, across) = area[0] * area[1], multiple
    side = math.lcm(down, across)
    if budget < side * side:
        raise RequestError(
            f"--area {area[0]}x{area[1]} is too small: sizes are multiples of {down}x{across}, so {side}x{side} is "
            "the least"
        )
    # For each height the width that uses up the pixels, and the one below it.
    full = [(high, budget // high // across * across) for high in range(down, budget // across + 1, down)]
    full += [(high, wide - across) for high, wide in full]
    shapes = [*_SHAPES, *(1 / shape for shape in reversed(_SHAPES[:-1]))]
    return tuple(dict.fromkeys(min(full, key=lambda size: _badness(size, shape, budget)) for shape in shapes))


def _badness(size: tuple[int, int], shape: Fraction, budget: int) -> float:
    """How far a size is from a shape, and how much of the pixels it leaves unused: what a crop costs of either."""
    high, wide = size
    if wide <= 0:
        return math.inf
    return abs(math.log(wide / high / shape)) + 0.75 * math.log(budget / (high * wide))


def nearest_size(height: int, width: int, sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The size nearest in shape to a frame; of several, the largest that need not be scaled up."""

    def badness(size: tuple[int, int]) -> tuple[float, bool, int]:
        too_large = size[0] * size[1] > height * width
        shape = round(abs(math.log(size[1] / size[0] * height / width)), 2)
        return shape, too_large, size[0] * size[1] * (1 if too_large else -1)

    return min(set(sizes), key=badness)
