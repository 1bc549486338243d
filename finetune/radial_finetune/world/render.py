"""Draws scenes as clips: anti-aliased shapes from signed distances, on any device, at any length and size.

Shapes: B clips, N figures, T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radial_finetune.world.scene import COLOURS, SHAPES, Scene, pose


@dataclass(frozen=True)
class Track:
    """Ground truth of one figure in pixels, a value a frame: centre, radius; angle in radians."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    radius: tuple[float, ...]
    angle: tuple[float, ...]


def tracks(scene: Scene, num_frames: int, height: int, width: int) -> tuple[Track, ...]:
    """Ground truth of every figure of a scene, in pixels."""
    side = min(height, width)
    result = []
    for figure in scene.figures:
        poses = [pose(figure, t / max(num_frames - 1, 1), width / height) for t in range(num_frames)]
        x, y, radius, angle = zip(*poses, strict=True)
        result.append(
            Track(tuple(v * side for v in x), tuple(v * side for v in y), tuple(v * side for v in radius), angle)
        )
    return tuple(result)


def render(
    scenes: Sequence[Scene],
    num_frames: int = 33,
    height: int = 128,
    width: int = 128,
    device: torch.device | str = "cpu",
    truths: Sequence[Sequence[Track]] | None = None,
) -> Tensor:
    """Draw scenes as clips ``[B, 3, T, H, W]``, float32 in -1..1.

    Args:
        truths: where the figures of each scene are, in place of what their motions say.
    """
    ground_B1HW = torch.stack([_ground(scene, height, width) for scene in scenes]).to(device)[:, None]
    clips_BCTHW = ground_B1HW[:, :, None].expand(-1, 3, num_frames, -1, -1).clone()
    truths = truths or [tracks(scene, num_frames, height, width) for scene in scenes]
    paint(clips_BCTHW, [[(f.shape, f.colour, t) for f, t in zip(s.figures, truth, strict=True)]
                        for s, truth in zip(scenes, truths, strict=True)])  # fmt: skip
    return clips_BCTHW


def to_pixels(clip_CTHW: Tensor) -> NDArray[np.uint8]:
    """A rendered clip as uint8 ``[T, H, W, 3]``."""
    pixels: NDArray[np.uint8] = ((clip_CTHW + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
    return pixels


def paint(clips_BCTHW: Tensor, figures: Sequence[Sequence[tuple[str, str, Track]]]) -> None:
    """Draw figures, each a shape, a colour and its track, onto the clips that they are of, the first at the bottom."""
    _, _, num_frames, height, width = clips_BCTHW.shape
    device = clips_BCTHW.device
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None] + 0.5
    columns = torch.arange(width, device=device, dtype=torch.float32)[None, :] + 0.5
    jobs: dict[tuple[int, str], list[int]] = {}
    for index, clip in enumerate(figures):
        for layer, (shape, _, _) in enumerate(clip):
            jobs.setdefault((layer, shape), []).append(index)
    for (layer, shape), members in sorted(jobs.items(), key=lambda job: (job[0][0], SHAPES.index(job[0][1]))):
        drawn = [figures[index][layer] for index in members]
        truth = torch.tensor([[track.x, track.y, track.radius, track.angle] for _, _, track in drawn]).to(device)
        x, y, radius, angle = (truth[:, k, :, None, None] for k in range(4))
        colour_BC111 = (torch.tensor([COLOURS[colour] for _, colour, _ in drawn]).to(device) / 127.5 - 1)[
            :, :, None, None, None
        ]
        dx, dy = (columns - x) / radius, (rows - y) / radius
        cos, sin = torch.cos(angle), torch.sin(angle)
        distance = signed_distance(shape, cos * dx + sin * dy, cos * dy - sin * dx) * radius
        cover_B1THW = (0.5 - distance).clamp_(0, 1)[:, None]
        where = torch.tensor(members, device=device)
        clips_BCTHW[where] = torch.lerp(
            clips_BCTHW[where], colour_BC111.expand(-1, 3, num_frames, height, width), cover_B1THW
        )


def signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance to a shape of about unit radius, negative inside; y points down. Exact near the outline."""
    match shape:
        case "circle":
            return torch.hypot(x, y) - 0.9
        case "ring":
            return (torch.hypot(x, y) - 0.7).abs() - 0.27
        case "square":
            return torch.maximum(x.abs(), y.abs()) - 0.8
        case "cross":
            bar = torch.maximum(x.abs() - 1.0, y.abs() - 0.32)
            post = torch.maximum(x.abs() - 0.32, y.abs() - 1.0)
            return torch.minimum(bar, post)
        case "triangle":
            slope = math.sqrt(3) / 2
            centred = y - 0.15
            return torch.maximum(
                centred - 0.55, torch.maximum(slope * x - centred / 2, -slope * x - centred / 2) - 0.55
            )
        case "star":
            return _star(x, y, points=5, outer=1.1, inner=0.46)
    raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")


def _star(x: Tensor, y: Tensor, points: int, outer: float, inner: float) -> Tensor:
    """Fold the plane into one half point, then measure to the edge from tip to notch."""
    sector = math.pi / points
    angle = torch.remainder(torch.atan2(x, -y) + sector, 2 * sector) - sector
    length = torch.hypot(x, y)
    along, across = length * torch.cos(angle), length * torch.sin(angle).abs()
    notch_x, notch_y = inner * math.cos(sector), inner * math.sin(sector)
    edge_x, edge_y = notch_x - outer, notch_y
    size = math.hypot(edge_x, edge_y)
    return ((along - outer) * edge_y - across * edge_x) / size


def _ground(scene: Scene, height: int, width: int) -> Tensor:
    return ground(scene.background, scene.texture_seed, height, width)


def ground(background: str, texture_seed: int, height: int, width: int, moved: tuple[float, float] = (0, 0)) -> Tensor:
    """A grey ground ``[H, W]`` in -1..1, moved by so many pixels to the right and down."""
    plain = {"black": -0.92, "grey": -0.15, "white": 0.85}
    if background in plain:
        return torch.full((height, width), plain[background])
    side = min(height, width)
    generator = torch.Generator().manual_seed(texture_seed)
    shift = torch.rand(2, generator=generator) * side
    rows = torch.arange(height)[:, None] + shift[0] - moved[1]
    columns = torch.arange(width)[None, :] + shift[1] - moved[0]
    cell = side / 8
    match background:
        case "striped":
            wave = torch.sin((rows + 0 * columns) * (2 * math.pi / (2 * cell)))
            return -0.45 + 0.25 * (3 * wave).clamp(-1, 1)
        case "checkered":
            wave = torch.sin(rows * (math.pi / cell)) * torch.sin(columns * (math.pi / cell))
            return 0.3 + 0.25 * (6 * wave).clamp(-1, 1)
        case "speckled":
            coarse = torch.rand(1, 1, 10, 10, generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
            cloud = -0.7 + 0.5 * smooth[0, 0].clamp(0, 1)
            return cloud if moved == (0, 0) else _moved(cloud, moved)
    raise ValueError(f"unknown background {background!r}")


def _moved(cloud_HW: Tensor, moved: tuple[float, float]) -> Tensor:
    """A texture moved by fractions of pixels; what leaves on one side comes in, mirrored, on the other."""
    height, width = cloud_HW.shape

    def taps(count: int, by: float) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.remainder(torch.arange(count) - by, 2 * count)
        low = place.floor()
        one, two = (torch.remainder(low + k, 2 * count).long() for k in (0, 1))
        one, two = (torch.where(index < count, index, 2 * count - 1 - index) for index in (one, two))
        return one, two, place - low

    top, bottom, down = taps(height, moved[1])
    left, right, across = taps(width, moved[0])
    rows = torch.lerp(cloud_HW[top], cloud_HW[bottom], down[:, None])
    return torch.lerp(rows[:, left], rows[:, right], across)
