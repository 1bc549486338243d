"""Draws stories as clips, and tells where everything is in them.

Shapes: B clips, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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


def render_stories(
    stories: Sequence[Story], height: int = 128, width: int = 128, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw stories of one length as clips ``[B, 3, T, H, W]``, float32 in -1..1."""
    clips_BCTHW = torch.stack([_grounds(story, height, width, device) for story in stories])
    paint(clips_BCTHW, [
        [(actor.figure.shape, actor.figure.colour, track)
         for actor, track in zip(story.actors, story_tracks(story, height, width), strict=True)]
        for story in stories
    ])  # fmt: skip
    return clips_BCTHW


def _grounds(story: Story, height: int, width: int, device: torch.device | str) -> Tensor:
    """The ground of every frame, ``[3, T, H, W]``."""
    if story.drift == (0.0, 0.0) == story.camera:
        still = ground(story.background, story.texture_seed, height, width).to(device)
        return still.expand(3, story.num_frames, -1, -1).clone()
    frames = [
        ground(story.background, story.texture_seed, height, width, ground_shift(story, frame, min(height, width)))
        for frame in range(story.num_frames)
    ]
    return torch.stack(frames).to(device).expand(3, -1, -1, -1).clone()


def ground_shift(story: Story, frame: float, side: int) -> tuple[float, float]:
    """How far the ground of a frame is from that of the first one, in pixels."""
    camera = story.camera_at(frame)
    x, y = (side * (story.drift[axis] * frame / 32 + camera[axis]) for axis in (0, 1))
    return x, y
