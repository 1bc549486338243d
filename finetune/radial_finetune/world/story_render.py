"""Draws stories as clips, and tells where everything is in them.

Shapes: B clips, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radial_finetune.world.render import Track, ground, paint
from radial_finetune.world.story import Story, state_at

_GONE = -10.0  # shorter sides: nothing of it is seen


@dataclass(frozen=True)
class StoryTrack(Track):
    """Ground truth of one actor in pixels, and whether any of it is in the frame."""

    present: tuple[bool, ...]


def story_tracks(story: Story, height: int = 128, width: int = 128) -> tuple[StoryTrack, ...]:
    """Ground truth of every actor, camera included."""
    side, found = min(height, width), []
    for actor in story.actors:
        rows: list[tuple[float, float, float, float, bool]] = []
        for frame in range(story.num_frames):
            state = state_at(actor, frame, width / height)
            if state is None:
                rows.append((_GONE * side, _GONE * side, actor.figure.radius * side, 0.0, False))
                continue
            camera_x, camera_y = story.camera_at(frame)
            x, y, radius = (state[0] + camera_x) * side, (state[1] + camera_y) * side, state[2] * side
            rows.append((x, y, radius, state[3], -radius < x < width + radius and -radius < y < height + radius))
        xs, ys, radii, angles, present = zip(*rows, strict=True)
        found.append(StoryTrack(xs, ys, radii, angles, present))
    return tuple(found)


@dataclass(frozen=True)
class StoryParts:
    """What a story is painted from: its ground ``[T or 1, H, W]`` in -1..1, each actor's shape, colour and track."""

    num_frames: int
    ground_THW: NDArray[np.float32 | np.float16]
    actors: tuple[tuple[str, str, StoryTrack], ...]


def story_parts(story: Story, height: int = 128, width: int = 128) -> StoryParts:
    """Measure out a story, on the CPU."""
    if story.drift == (0.0, 0.0) == story.camera:
        grounds = [ground(story.background, story.texture_seed, height, width)]
    else:
        shifts = (ground_shift(story, frame, min(height, width)) for frame in range(story.num_frames))
        grounds = [ground(story.background, story.texture_seed, height, width, shift) for shift in shifts]
    tracks = story_tracks(story, height, width)
    actors = ((actor.figure.shape, actor.figure.colour, t) for actor, t in zip(story.actors, tracks, strict=True))
    return StoryParts(story.num_frames, torch.stack(grounds).numpy(), tuple(actors))


def paint_stories(parts: Sequence[StoryParts], device: torch.device | str = "cpu") -> Tensor:
    """Paint stories of one length as clips ``[B, 3, T, H, W]``, float32 in -1..1."""
    clips_BCTHW = torch.stack(
        [torch.from_numpy(one.ground_THW).to(device).float().expand(3, one.num_frames, -1, -1) for one in parts]
    )
    paint(clips_BCTHW, [one.actors for one in parts])
    return clips_BCTHW


def paint_scenes(scenes: Sequence[StoryParts], device: torch.device | str = "cpu") -> Tensor:
    """Paint scenes that follow one another as one clip ``[3, T, H, W]``: the first frame, and 32 frames a unit."""
    clips = [paint_stories([scene], device)[0] for scene in scenes]
    return torch.cat([clips[0], *(clip[:, 1:] for clip in clips[1:])], 1)


def render_stories(
    stories: Sequence[Story], height: int = 128, width: int = 128, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw stories of one length as clips ``[B, 3, T, H, W]``, float32 in -1..1."""
    return paint_stories([story_parts(story, height, width) for story in stories], device)


def ground_shift(story: Story, frame: float, side: int) -> tuple[float, float]:
    """How far the ground of a frame is from that of the first one, in pixels."""
    camera = story.camera_at(frame)
    x, y = (side * (story.drift[axis] * frame / 32 + camera[axis]) for axis in (0, 1))
    return x, y
