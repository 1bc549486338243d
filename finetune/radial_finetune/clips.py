"""Training clips out of video files: decoded by time, cut at scene changes, without what does not move."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radial.errors import ModelError, RequestError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """A video file and its caption."""

    file: Path
    caption: str


@dataclass(frozen=True)
class Cut:
    """How clips are taken from a file.

    Attributes:
        cut_threshold: mean change of hue, saturation and value from one frame to the next, in 0..255, that can be a new
            scene. It must also be three times that of the frames before, so that fast motion is none.
        static_threshold: mean change of a pixel over the clip, in 0..255, below which nothing moves.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    cut_threshold: float = 15.0
    static_threshold: float = 0.5


def find_sources(data: Path) -> list[Source]:
    """Files and captions of a folder with sidecar ``.txt`` files or a metadata file, or of that file itself.

    Raises:
        RequestError: there is nothing to train on, or a caption or file is missing; the first are named.
    """
    table = data if data.is_file() else next((p for p in _tables(data) if p.is_file()), None)
    if table is not None:
        return _read_table(table)
    if not data.is_dir():
        raise RequestError(f"there is no folder {data}")
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise RequestError(f"{data} has no videos ({', '.join(VIDEO_SUFFIXES)}) and no metadata.jsonl or metadata.csv")
    without = [p.name for p in files if not p.with_suffix(".txt").is_file()]
    if without:
        raise RequestError(f"{len(without)} of {len(files)} videos have no caption beside them, such as {without[0]}")
    return [Source(p, p.with_suffix(".txt").read_text(encoding="utf-8").strip()) for p in files]


def _tables(folder: Path) -> tuple[Path, Path]:
    return folder / "metadata.jsonl", folder / "metadata.csv"


def _read_table(table: Path) -> list[Source]:
    rows: list[dict[str, Any]] = []
    with table.open(encoding="utf-8", newline="") as content:
        if table.suffix == ".csv":
            rows = list(csv.DictReader(content))
        else:
            for number, line in enumerate(content, 1):
                if line.strip():
                    try:
                        rows.append(json.loads(line))
                    except ValueError as error:
                        raise RequestError(f"{table}, line {number}, is not JSON: {error}") from error
    sources = []
    for number, row in enumerate(rows, 1):
        name = row.get("file") or row.get("file_name")
        caption = row.get("caption") or row.get("text")
        if not isinstance(name, str) or not isinstance(caption, str):
            raise RequestError(f"{table}, row {number}, must have a file and a caption")
        file = (table.parent / name).resolve()
        if not file.is_relative_to(table.parent.resolve()):
            raise RequestError(f"{table}, row {number}: {name} lies outside the folder")
        if not file.is_file():
            raise RequestError(f"{table}, row {number}: no file {name}")
        sources.append(Source(file, caption.strip()))
    if not sources:
        raise RequestError(f"{table} names no clips")
    return sources


def read_clips(file: Path, cut: Cut, dropped: dict[str, int]) -> Iterator[Frames]:
    """Clips ``[T, H, W, 3]`` of one file; ``dropped`` counts what was left out and why.

    Raises:
        ModelError: the file is corrupt or no video.
    """
    window: list[Frames] = []
    changes: list[float] = []  # of the scene so far
    last: Frames | None = None
    for frame in resample(file, cut.fps):
        small = _fit(frame, cut.height, cut.width)
        if last is not None:
            change = _change(last, small)
            usual = max(changes[-3:], default=cut.cut_threshold / 2)
            if change > max(cut.cut_threshold, 3 * usual):
                if window:
                    dropped["too short"] = dropped.get("too short", 0) + 1
                window, changes = [], []
            else:
                changes.append(change)
        last = small
        window.append(small)
        if len(window) == cut.num_frames:
            clip = np.stack(window)
            window = []
            if np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() < cut.static_threshold:
                dropped["static"] = dropped.get("static", 0) + 1
            else:
                yield clip
    if window:
        dropped["too short"] = dropped.get("too short", 0) + 1


def resample(file: Path, fps: float) -> Iterator[Frames]:
    """Frames at a constant rate: at each instant the one that is shown then, so that speed stays as it is.

    Raises:
        ModelError: the file is corrupt or no video.
    """
    import av

    try:
        with av.open(str(file)) as container:
            shown: Frames | None = None
            instant = 0
            start: float | None = None
            end = 0.0
            for frame in container.decode(video=0):
                if frame.time is None:
                    continue
                start = frame.time if start is None else start
                moment = frame.time - start
                while shown is not None and instant / fps < moment - 1e-6:
                    yield shown
                    instant += 1
                shown = frame.to_ndarray(format="rgb24")
                rate = container.streams.video[0].average_rate
                end = moment + (1 / float(rate) if rate else 1 / fps)
            while shown is not None and instant / fps < end - 1e-6:
                yield shown
                instant += 1
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ModelError(f"{file.name} cannot be read as a video: {error}") from error


def _fit(frame: Frames, height: int, width: int) -> Frames:
    """Cut at the longer sides, about the middle, and scaled."""
    import cv2

    scale = max(height / frame.shape[0], width / frame.shape[1])
    size = (max(width, round(frame.shape[1] * scale)), max(height, round(frame.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(frame, size, interpolation=method)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(resized[top : top + height, left : left + width]).astype(np.uint8)


def _change(last: Frames, frame: Frames) -> float:
    """Mean difference of two frames in hue, saturation and value."""
    import cv2

    one, two = (cv2.cvtColor(x, cv2.COLOR_RGB2HSV).astype(np.int16) for x in (last, frame))
    change = np.abs(one - two)
    hue = change[..., 0]
    change[..., 0] = np.minimum(hue, 180 - hue)  # a circle: red lies at both ends
    return float(change.mean())
