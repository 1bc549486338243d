"""Puts a scene into words, with synonyms, and remembers which words speak of which figure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from radial_finetune.world.scene import COLOURS, Figure, Scene

_COLOUR_WORDS = {name: (name,) for name in COLOURS} | {
    "cyan": ("cyan", "turquoise"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "magenta"),
    "red": ("red", "crimson"),
}
_SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
}
_SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("", "", "medium-sized"),
    "large": ("large", "big", "huge"),
}
SPEED_WORDS = {"slow": ("slowly", "gently"), "normal": ("",), "fast": ("quickly", "fast")}
MOTION_WORDS = {
    "right": ("moves from left to right", "travels to the right", "slides right"),
    "left": ("moves from right to left", "travels to the left", "slides left"),
    "rise": ("rises", "moves up", "floats upwards"),
    "fall": ("falls", "moves down", "sinks"),
    "bounce": ("bounces", "bounces up and down", "hops"),
    "sway": ("sways", "sways from side to side", "swings left and right"),
    "orbit": ("moves in a circle", "orbits", "circles around"),
    "zigzag": ("zig-zags", "moves in a zig-zag", "zig-zags to the right"),
    "spin": ("spins", "rotates", "turns around itself"),
    "grow": ("grows", "gets bigger", "expands"),
    "shrink": ("shrinks", "gets smaller", "contracts"),
    "rest": ("stays still", "rests", "does not move"),
}
GROUND_WORDS = {
    "black": ("on a black background", "on black"),
    "grey": ("on a grey background", "on grey"),
    "white": ("on a white background", "on white"),
    "striped": ("on a striped background", "over stripes"),
    "checkered": ("on a checkered background", "over a checkerboard"),
    "speckled": ("on a speckled background", "over a cloudy texture"),
}
JOINS = (" and ", " while ", ", and ")


@dataclass(frozen=True)
class Caption:
    """A caption and the character spans ``(start, end)`` of each figure's words."""

    text: str
    spans: tuple[tuple[int, int], ...]


def describe(scene: Scene, rng: random.Random) -> Caption:
    """Describe a scene in random words. Every attribute is named, a medium size and normal speed by silence."""
    text, spans = "", []
    join = rng.choice(JOINS)
    for index, figure in enumerate(scene.figures):
        text += join if index else ""
        words = _words(figure, rng)
        spans.append((len(text), len(text) + len(words)))
        text += words
    return Caption(f"{text} {rng.choice(GROUND_WORDS[scene.background])}", tuple(spans))


def _words(figure: Figure, rng: random.Random) -> str:
    subject = name_figure(figure, rng)
    speed = "" if figure.motion == "rest" else rng.choice(SPEED_WORDS[figure.speed])
    return " ".join(word for word in (subject, rng.choice(MOTION_WORDS[figure.motion]), speed) if word)


def name_figure(figure: Figure, rng: random.Random) -> str:
    """A figure's size, colour and shape, with its article."""
    noun = (
        rng.choice(_SIZE_WORDS[figure.size]),
        rng.choice(_COLOUR_WORDS[figure.colour]),
        rng.choice(_SHAPE_WORDS[figure.shape]),
    )
    subject = " ".join(word for word in noun if word)
    return f"{'an' if subject[0] in 'aeiou' else 'a'} {subject}"
