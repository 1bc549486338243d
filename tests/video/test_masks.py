"""Masks of clips: what lies outside comes back as it was, without a seam; and one that is drawn follows its figure."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from radial.video.clip import Video, read_frames
from radial.video.colour import Frame
from radial.video.control import read_mask
from radial.video.masks.kept import Kept, soft_edge
from radial.video.masks.tracked import track_mask
from radial_app.cli.main import app
from radial_finetune.world.render import render, to_pixels, tracks
from radial_finetune.world.scene import Scene, draw_scene


def step_across(frame: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """The largest step between neighbours in a row of which one at least lies in the mask."""
    steps = np.abs(np.diff(frame[..., 0].astype(int), axis=1))
    return float(steps[mask[:, 1:] | mask[:, :-1]].max())


def test_outside_the_edge_each_clip_is_itself_and_no_seam_shows() -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(0, 8, (4, 256, 256, 3)).astype(np.uint8)
    made = given + np.uint8(60)  # a model that misses the brightness of all that is around
    mask = np.zeros((4, 256, 256), bool)
    mask[0, 60:200, 60:200] = True
    mask[1, 100:103] = True  # a wire
    mask[2] = True
    kept = Kept(given, mask)
    assert kept.width == 4
    frames = kept.put_back(made)
    assert np.array_equal(frames[~mask], given[~mask])
    assert np.array_equal(frames[0, 64:196, 64:196], made[0, 64:196, 64:196])
    assert np.array_equal(frames[1, 101], made[1, 101])  # what is thin is made anew, too
    assert np.array_equal(frames[2], made[2])
    assert np.array_equal(frames[3], given[3])
    pasted = np.where(mask[..., None], made, given)
    assert step_across(pasted[0], mask[0]) > 60
    assert step_across(frames[0], mask[0]) < 32


def test_edges_rise_inward_and_the_borders_of_the_frame_are_none() -> None:
    mask = np.zeros((40, 60), bool)
    mask[:, 30:] = True
    weights = soft_edge(mask, 4)
    assert np.array_equal(weights[:, :30], np.zeros((40, 30)))
    assert (np.diff(weights[20, 29:36]) >= 0).all()
    assert (weights[:, 34:] == 1).all()
    assert np.array_equal(weights[0], weights[20])


def clip_and_truth(seed: int, figures: int) -> tuple[list[Frame], NDArray[np.bool_]]:
    """A clip of the shapes world, and where its first figure is."""
    scene = draw_scene(random.Random(seed), figures)
    truth = tracks(scene, 25, 128, 128)
    red, blue = (
        to_pixels(
            render([Scene((replace(scene.figures[0], colour=colour),), scene.background)], 25, 128, 128,
                   truths=[truth[:1]])[0]
        ).astype(int)
        for colour in ("red", "blue")
    )  # fmt: skip
    away = np.abs(red - blue).max(-1)
    return list(to_pixels(render([scene], 25, 128, 128, truths=[truth])[0])), away > away.max() / 2


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """The mean intersection over union of two masks' frames."""
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(one, other, strict=True) if b.sum() > 20]))


def test_a_drawn_mask_follows_its_figure() -> None:
    """From a first frame and from a middle one, on plain, striped and checkered grounds, turning and growing, drawn
    roughly, too; nearer than by flow alone."""
    by_flow, by_edges, drawn_roughly = [], [], []
    for seed, figures, at in ((3, 1, 0), (5, 1, 12), (1, 2, 12), (6, 2, 0)):
        clip, truth = clip_and_truth(seed, figures)
        rough = cv2.dilate(truth[at].astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        by_flow.append(overlap(track_mask(clip, truth[at], at, edges=False), truth))
        by_edges.append(overlap(track_mask(clip, truth[at], at), truth))
        drawn_roughly.append(overlap(track_mask(clip, rough, at), truth))
    assert min(by_edges) > 0.9
    assert np.mean(by_edges) > 0.95
    assert np.mean(by_edges) > np.mean(by_flow) + 0.15
    assert np.mean(drawn_roughly) > 0.9


def test_a_drawing_becomes_a_mask_and_a_preview_from_the_command_line(tmp_path: Path) -> None:
    clip, truth = clip_and_truth(0, 1)
    clip = [cv2.resize(frame, (768, 640)) for frame in clip[:5]]  # larger than masks are followed at
    large = np.stack([cv2.resize(one.astype(np.uint8), (768, 640)) > 0 for one in truth[:5]])
    Video(np.stack(clip), 10).write(tmp_path / "clip.mp4")
    Image.fromarray((truth[2] * 255).astype(np.uint8)).resize((384, 320)).save(tmp_path / "drawn.png")
    run = ["control", "mask", str(tmp_path / "clip.mp4"), "--drawn", str(tmp_path / "drawn.png"), "--at", "0.2",
           "-o", str(tmp_path / "mask.mp4"), "--preview", str(tmp_path / "look.mp4"), "--grow", "0"]  # fmt: skip
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    white, notes = read_mask(tmp_path / "mask.mp4", 640, 768, 5, 10, "crop")
    assert not notes
    assert overlap(white, large) > 0.88  # of edges that are blurred
    redder = read_frames(tmp_path / "look.mp4").astype(int)[..., 0] - np.stack(clip)[..., 0] // 2
    assert np.abs(redder[~white]).mean() < 6
    assert np.abs(redder[white] - 127).mean() < 12
    for options, message in (
        (["--at", "0.5"], "the clip has 5 frames, and none at 5"),
        (["--drawn", str(tmp_path / "black.png")], "black all over"),
        (["--drawn", str(tmp_path / "square.png")], "in its shape: square.png is 64x64, and the clip 768x640"),
    ):
        Image.new("L", (384, 320)).save(tmp_path / "black.png")
        Image.new("L", (64, 64), 255).save(tmp_path / "square.png")
        told = CliRunner().invoke(app, [*run, *options, "--overwrite"])
        assert message in str(told.exception)
