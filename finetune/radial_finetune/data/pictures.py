"""Pictures of a cache, of clips, and of measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from radial.errors import RequestError
from radial_finetune.data.cache import CachedClip
from radial_finetune.data.clips import Frames

_PAPER, _INK = (250, 249, 246), (34, 34, 40)
_COLOURS = ("#2a60b2", "#c2571a", "#3f8f4f", "#8a4fa8", "#b23a48", "#5b6770", "#a88a1f")


def check_plots() -> None:
    """Make sure, before work is spent, that plots can be drawn.

    Raises:
        RequestError: what draws them is not installed.
    """
    _figure(1, 1, (1, 1))


def contact_sheet(clips: Sequence[tuple[str, Frames]], columns: int = 2, count: int = 5) -> Image.Image:
    """One strip of frames a clip under its title."""
    size, band = 96, 22
    strip = size * count + 10
    sheet = Image.new("RGB", (columns * strip, max(1, -(-len(clips) // columns)) * (size + band)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for index, (title, clip) in enumerate(clips):
        x, y = index % columns * strip, index // columns * (size + band)
        while font.getlength(title) > strip - 10:
            title = title[:-2].rstrip(" .") + "…"
        draw.text((x + 2, y + 4), title, fill=_INK, font=font)
        for place, frame in enumerate(np.linspace(0, len(clip) - 1, count).round().astype(int)):
            image = Image.fromarray(clip[frame])
            image.thumbnail((size, size))
            if max(image.size) < size:
                scale = size / max(image.size)
                image = image.resize((round(image.width * scale), round(image.height * scale)))
            sheet.paste(image, (x + place * size, y + band))
    return sheet


def draw_cache(
    buckets: Mapping[str, int], dropped: Mapping[str, int], clips: Sequence[CachedClip], fps: float, path: Path
) -> None:
    """Histograms of a cache: clips by size, clips a source, words a caption; and what was left out."""
    figure, axes = _figure(2, 2, (10, 7))
    _bars(axes[0][0], buckets, "clips by frames x height x width")
    _bars(axes[0][1], dropped, "pieces left out")
    a_source = Counter(Counter(clip.source for clip in clips).values())
    _bars(axes[1][0], {f"{n}": a_source[n] for n in sorted(a_source)}, "sources by clips taken from each")
    words = [len(clip.caption.split()) for clip in clips]
    axes[1][1].hist(words, bins=min(20, len(set(words))), color=_COLOURS[0])
    axes[1][1].set_title("clips by words in the caption")
    seconds = sum(clip.bucket.num_frames for clip in clips) / fps
    figure.suptitle(f"{len(clips)} clips, {seconds / 60:.1f} minutes at {fps:g} fps")
    _save(figure, path)


def draw_curves(
    curves: Mapping[str, Sequence[tuple[NDArray[Any], NDArray[Any]]]], titles: Sequence[str], path: Path, across: str
) -> None:
    """A panel for each title; ``curves`` are by name, a curve (across, up) for each panel."""
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure, axes = _figure(rows, columns, (4.2 * columns, 3 * rows))
    flat = [axis for row in axes for axis in row]
    for panel, title in enumerate(titles):
        for number, (name, lines) in enumerate(curves.items()):
            flat[panel].plot(*lines[panel], label=name, color=_COLOURS[number % len(_COLOURS)], linewidth=1.4)
        flat[panel].set_title(title)
        flat[panel].set_xlabel(across)
    for unused in flat[len(titles) :]:
        unused.set_visible(False)
    if len(curves) > 1:
        flat[0].legend(fontsize=8, frameon=False)
    _save(figure, path)


def draw_intervals(
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]], measures: Sequence[str], path: Path
) -> None:
    """A panel for each measure: a bar for each row with its confidence interval, from (mean, low, high)."""
    figure, axes = _figure(1, len(measures), (3.6 * len(measures), 0.5 * len(rows) + 1.6))
    for panel, measure in enumerate(measures):
        axis = axes[0][panel]
        for place, (name, values) in enumerate(rows.items()):
            mean, low, high = values[measure]
            axis.barh(
                place, mean, xerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
                color=_COLOURS[place % len(_COLOURS)], capsize=3, error_kw={"linewidth": 1},
            )  # fmt: skip
            if panel == 0:
                axis.text(-0.03, place, name, ha="right", va="center", transform=axis.get_yaxis_transform())
        axis.set_yticks([])
        axis.invert_yaxis()
        axis.set_title(measure)
    _save(figure, path)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=size, layout="constrained", facecolor="#faf9f6")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_facecolor("#faf9f6")
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _bars(axis: Any, values: Mapping[str, int], title: str) -> None:
    axis.set_title(title)
    if not values:
        axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    bars = axis.barh(list(values), list(values.values()), color=_COLOURS[0])
    axis.bar_label(bars, padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.15)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png", dpi=110)
