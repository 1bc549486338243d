"""The shapes world: seeded, any length and size, true to its own words."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from radial_finetune.world import Figure, Scene, describe, draw_scene, render, tracks
from radial_finetune.world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES


def figure(**changes: object) -> Figure:
    return replace(Figure("star", "red", "large", "right", "fast"), **changes)


def test_seeds_repeat() -> None:
    for figures in (1, 2):
        scenes = [draw_scene(random.Random(3), figures) for _ in range(2)]
        assert scenes[0] == scenes[1]
        assert torch.equal(*(render([scene], 9, 32, 32) for scene in scenes))
        assert describe(scenes[0], random.Random(1)) == describe(scenes[1], random.Random(1))
    with pytest.raises(ValueError, match="1 or 2 figures"):
        draw_scene(random.Random(), 3)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 64), (33, 128, 128), (12, 48, 96), (129, 40, 24)])
def test_any_length_and_size(frames: int, height: int, width: int) -> None:
    rng = random.Random(0)
    clips = render([draw_scene(rng, 1 + i % 2) for i in range(4)], frames, height, width)
    assert clips.shape == (4, 3, frames, height, width)
    assert clips.min() >= -1
    assert clips.max() <= 1


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("frames", [33, 129])
def test_figures_stay_in_the_frame_and_near_their_track(motion: str, frames: int) -> None:
    scene = Scene((figure(motion=motion, offset=(1.0, -1.0)),), "black")
    clip = render([scene], frames, 64, 64)[0]
    (track,) = tracks(scene, frames, 64, 64)
    for t in range(0, frames, 8):
        # On black the red channel is the figure.
        weight = (clip[0, t] + 1).double()
        weight = weight.where(weight > 0.5, 0)
        rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        x, y = ((weight * axis).sum() / weight.sum() for axis in (columns, rows))
        assert x.item() == pytest.approx(track.x[t], abs=1.5)
        assert y.item() == pytest.approx(track.y[t], abs=1.5)
        assert track.radius[t] <= track.x[t] <= 64 - track.radius[t]
        assert track.radius[t] <= track.y[t] <= 64 - track.radius[t]


def test_motions_span_the_clip_at_any_length() -> None:
    """A longer clip is the same motion, slower: nothing repeats."""
    for motion in MOTIONS:
        scene = Scene((figure(motion=motion),), "black")
        short, long = tracks(scene, 33, 64, 64)[0], tracks(scene, 129, 64, 64)[0]
        for axis in ("x", "y", "radius", "angle"):
            assert np.allclose(getattr(short, axis), getattr(long, axis)[::4])


def test_two_figures_never_meet_and_never_match() -> None:
    rng = random.Random(11)
    for _ in range(200):
        scene = draw_scene(rng, 2)
        first, second = scene.figures
        assert (first.shape, first.colour) != (second.shape, second.colour)
        paths = tracks(scene, 17, 128, 128)
        for t in range(17):
            apart = np.hypot(paths[0].x[t] - paths[1].x[t], paths[0].y[t] - paths[1].y[t])
            assert apart >= (paths[0].radius[t] + paths[1].radius[t]) * 0.99


def test_captions_name_every_figure() -> None:
    rng = random.Random(2)
    for index in range(300):
        scene = draw_scene(rng, 1 + index % 2)
        caption = describe(scene, rng)
        assert len(caption.spans) == len(scene.figures)
        for start, end in caption.spans:
            words = caption.text[start:end]
            assert words.startswith(("a ", "an "))
        assert "  " not in caption.text


def test_grounds_are_grey_and_figures_are_not() -> None:
    for background in BACKGROUNDS:
        clip = render([Scene((), background, 7)], 2, 64, 64)[0]
        assert (clip.amax(0) - clip.amin(0)).max() < 1e-6
    for rgb in COLOURS.values():
        assert max(rgb) - min(rgb) > 120
    assert len(SHAPES) == 6
