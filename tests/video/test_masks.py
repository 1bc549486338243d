"""Masks of clips: what lies outside comes back as it was, without a seam."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radial.video.masks.kept import Kept, soft_edge


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
