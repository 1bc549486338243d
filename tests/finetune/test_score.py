"""The measure itself: right on ground truth, and blind to nothing it claims to see."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from radial_finetune.evaluate.score import STRAYED_LIMIT, repetition, score_clip
from radial_finetune.world import Scene, draw_scene, render
from radial_finetune.world.render import to_pixels
from radial_finetune.world.scene import COLOURS, MOTIONS, SHAPES


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


def looped(scene: Scene, native: int = 33, times: int = 4) -> np.ndarray:
    """A clip of its native length, over and over: what a model does that was never shown a longer one."""
    clip = to_pixels(render([scene], native)[0])
    return np.concatenate([clip] + [clip[1:]] * (times - 1))


@pytest.mark.slow
def test_a_looped_clip_is_seen() -> None:
    """Over the whole clip a loop is no motion that was asked for, and repeats itself where the truth does not."""
    rng = random.Random(9)
    moving = [scene for scene in (draw_scene(rng) for _ in range(40)) if scene.figures[0].motion != "rest"]
    assert {scene.figures[0].motion for scene in moving} >= {"grow", "right", "bounce"}
    wrong, repeated = [], []
    for scene in moving:
        (whole,) = score_clip(to_pixels(render([scene], 129)[0]), scene)
        assert whole.whole_motion
        assert whole.strayed < STRAYED_LIMIT / 2
        assert whole.repetition < 0.02
        assert whole.persistence == 1.0
        (loop,) = score_clip(looped(scene), scene)
        wrong.append(not loop.whole_motion)
        repeated.append(loop.repetition)
    assert np.mean(wrong) > 0.9
    assert np.mean(repeated) > 0.6


def test_repetition_of_plain_signals() -> None:
    t = np.arange(128)[:, None] / 128
    assert repetition(t, 16) == 0.0  # one way
    assert repetition(np.sin(2 * np.pi * t), 16) < 0.05  # one turn, which half a clip holds but half of
    assert repetition(np.sin(8 * np.pi * t), 16) > 0.99
    assert repetition(np.zeros((128, 2)), 16) == 0.0
    noise = np.random.default_rng(0).normal(size=(128, 8))
    assert repetition(noise, 16) < 0.2


def test_persistence_counts_frames_in_which_all_is_right() -> None:
    scene = draw_scene(random.Random(2))
    clip = to_pixels(render([scene])[0])
    gone, other, joined = clip.copy(), clip.copy(), clip.copy()
    gone[20:26] = 90
    other[:11] = other[:11][..., ::-1]
    joined[5:9, 100:112, 5:17] = (255, 0, 0)
    for changed, kept in ((gone, 27), (joined, 29)):
        (score,) = score_clip(changed, scene)
        assert score.persistence == pytest.approx(kept / 33)
    (score,) = score_clip(other, scene)
    assert score.persistence <= 22 / 33
