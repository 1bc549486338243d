"""The measure itself: right on ground truth, and blind to nothing it claims to see."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from radial_finetune.evaluate.__main__ import to_pixels
from radial_finetune.evaluate.score import score_clip
from radial_finetune.world import COLOURS, MOTIONS, SHAPES, Scene, draw_scene, render


def scored(shown: Scene, asked: Scene) -> list[tuple[bool, bool, bool]]:
    clip = to_pixels(render([shown])[0])
    return [(s.colour, s.shape, s.motion) for s in score_clip(clip, asked)]


@pytest.mark.parametrize("figures", [1, 2])
def test_ground_truth_scores_full_marks(figures: int) -> None:
    rng = random.Random(77)
    for _ in range(30):
        scene = draw_scene(rng, figures)
        assert scored(scene, scene) == [(True, True, True)] * figures, scene


def test_each_fault_is_seen_alone() -> None:
    rng = random.Random(5)
    for _ in range(12):
        scene = draw_scene(rng, 1)
        figure = replace(scene.figures[0], size="large")
        shown = replace(scene, figures=(figure,))

        def asked(shown: Scene = shown, **changes: str) -> Scene:
            return replace(shown, figures=(replace(shown.figures[0], **changes),))

        other = {
            "colour": rng.choice([c for c in COLOURS if c != figure.colour]),
            "shape": rng.choice([s for s in SHAPES if s != figure.shape]),
            "motion": rng.choice([m for m in MOTIONS if m != figure.motion]),
        }
        assert scored(shown, asked(colour=other["colour"])) == [(False, True, True)]
        assert scored(shown, asked(shape=other["shape"])) == [(True, False, True)]
        assert scored(shown, asked(motion=other["motion"])) == [(True, True, False)]


def test_a_missing_figure_scores_nothing() -> None:
    scene = draw_scene(random.Random(1), 2)
    alone = replace(scene, figures=scene.figures[:1])
    assert scored(alone, scene) in ([(True, True, True), (False, False, False)],)
    empty = np.full((33, 128, 128, 3), 90, np.uint8)
    assert [s.all for s in score_clip(empty, scene)] == [False, False]


def test_either_order_of_two_figures_counts() -> None:
    scene = draw_scene(random.Random(4), 2)
    swapped = replace(
        scene,
        figures=tuple(
            replace(figure, region=other.region)
            for figure, other in zip(scene.figures, reversed(scene.figures), strict=True)
        ),
    )
    assert scored(swapped, scene) == [(True, True, True)] * 2
