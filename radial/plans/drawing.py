"""Pictures of plans."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from radial.files import check_output, publish
from radial.plans.sketch import PlanSketch
from radial.plans.token_order import run_starts

_PAPER, _INK, _FAINT, _KEPT = (250, 249, 246), (34, 34, 40), (205, 203, 198), (42, 96, 178)
_SIDE, _MARGIN, _HEAD = 900, 70, 96


def draw_plan(plan: PlanSketch, title: str) -> Image.Image:
    """The block mask as a square, queries downwards and keys to the right, with the borders of frames, or of runs of
    frames where tokens are in columns."""
    picture = Image.new("RGB", (_SIDE + 2 * _MARGIN, _SIDE + _HEAD + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 20), title, fill=_INK, font=ImageFont.load_default(26))
    detail = (
        f"{plan.density:.1%} of {plan.rows} x {plan.rows} blocks kept   {plan.rule}   {plan.block_size} tokens a block"
    )
    draw.text((_MARGIN, 56), detail, fill=_INK, font=ImageFont.load_default(17))
    shade = np.asarray(_fit(plan.shade), np.float32)[..., None]
    paint = np.asarray(_KEPT) * shade + np.asarray((255, 255, 255)) * (1 - shade)
    picture.paste(Image.fromarray(paint.astype(np.uint8)), (_MARGIN, _HEAD))

    layout, scale = plan.layout, _SIDE / (plan.rows * plan.block_size)
    grid = layout.grid
    starts = range(grid.frames) if layout.tile is None else [0, *run_starts(grid, layout.tile)[:-1]]
    small = ImageFont.load_default(13)
    for frame, after in list(itertools.pairwise([*starts, grid.frames]))[:: max(1, len(starts) // 24)]:
        place = (layout.before + frame * grid.tokens_per_frame) * scale
        middle = place + (after - frame) * grid.tokens_per_frame * scale / 2
        draw.line([(_MARGIN - 6, _HEAD + place), (_MARGIN, _HEAD + place)], fill=_FAINT)
        draw.line([(_MARGIN + place, _HEAD + _SIDE), (_MARGIN + place, _HEAD + _SIDE + 6)], fill=_FAINT)
        draw.text((_MARGIN - 10, _HEAD + middle), str(frame), fill=_INK, font=small, anchor="rm")
        draw.text((_MARGIN + middle, _HEAD + _SIDE + 10), str(frame), fill=_INK, font=small, anchor="mt")
    draw.rectangle([_MARGIN, _HEAD, _MARGIN + _SIDE, _HEAD + _SIDE], outline=_FAINT)
    draw.text(
        (_MARGIN + _SIDE / 2, _HEAD + _SIDE + 36), "key frame", fill=_INK, font=ImageFont.load_default(16), anchor="mt"
    )
    label = Image.new("RGB", (120, 24), _PAPER)
    ImageDraw.Draw(label).text((60, 12), "query frame", fill=_INK, font=ImageFont.load_default(16), anchor="mm")
    picture.paste(label.rotate(90, expand=True), (8, int(_HEAD + _SIDE / 2 - 60)))
    return picture


def draw_work(shares_LN: NDArray[np.float64], title: str) -> Image.Image:
    """How much of its attention each layer computes at each step, layers downwards and steps to the right: dark is
    dense."""
    layers, steps = shares_LN.shape
    height = max(120, min(_SIDE // 2, 24 * layers))
    picture = Image.new("RGB", (_SIDE + 2 * _MARGIN, height + _HEAD + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 20), title, fill=_INK, font=ImageFont.load_default(26))
    detail = f"{shares_LN.mean():.1%} of all attention computed, each layer at each step; dark is dense"
    draw.text((_MARGIN, 56), detail, fill=_INK, font=ImageFont.load_default(17))
    shade = shares_LN[..., None]
    paint = (np.asarray(_KEPT) * shade + np.asarray((255, 255, 255)) * (1 - shade)).astype(np.uint8)
    cells = Image.fromarray(paint).resize((_SIDE, height), Image.Resampling.NEAREST)
    picture.paste(cells, (_MARGIN, _HEAD))
    draw.rectangle([_MARGIN, _HEAD, _MARGIN + _SIDE, _HEAD + height], outline=_FAINT)
    small = ImageFont.load_default(13)
    for layer in range(0, layers, -(-layers // 12)):
        draw.text(
            (_MARGIN - 10, _HEAD + (layer + 0.5) * height / layers), str(layer), fill=_INK, font=small, anchor="rm"
        )
    for step in range(0, steps, -(-steps // 25)):
        at = _MARGIN + (step + 0.5) * _SIDE / steps
        draw.text((at, _HEAD + height + 10), str(step), fill=_INK, font=small, anchor="mt")
    draw.text(
        (_MARGIN + _SIDE / 2, _HEAD + height + 36), "step", fill=_INK, font=ImageFont.load_default(16), anchor="mt"
    )
    label = Image.new("RGB", (80, 24), _PAPER)
    ImageDraw.Draw(label).text((40, 12), "layer", fill=_INK, font=ImageFont.load_default(16), anchor="mm")
    picture.paste(label.rotate(90, expand=True), (8, int(_HEAD + height / 2 - 40)))
    return picture


def stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    """Two pictures as one."""
    both = Image.new("RGB", (max(above.width, below.width), above.height + below.height), _PAPER)
    both.paste(above, (0, 0))
    both.paste(below, (0, above.height))
    return both


def _fit(shade: np.ndarray) -> Image.Image:
    """Shades at the picture's size: blocks enlarged sharply, or averaged where there are more than pixels."""
    image = Image.fromarray(shade)
    resample = Image.Resampling.NEAREST if shade.shape[0] <= _SIDE else Image.Resampling.BOX
    return image.resize((_SIDE, _SIDE), resample)


def write_png(picture: Image.Image, path: Path, *, overwrite: bool = False) -> Path:
    """Write under a temporary name, then rename.

    Raises:
        RequestError: the file exists, or is no PNG.
        OutputError: the place cannot be written.
    """
    check_output(path, ".png", overwrite=overwrite)
    publish(path, picture.save, overwrite=overwrite)
    return path
