"""A finished clip: its frames, how it is written to a file and read back, and the receipt the file carries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from radial.errors import OutputError
from radial.files import check_output, publish
from radial.video.encoding import Encoding, Frames, encode, encoding_for
from radial.video.reader import decode_frames, read_comment
from radial.video.sound import Sound

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")  # of clips that users bring to tune on


@dataclass(frozen=True, eq=False)
class Video:
    """Frames uint8 ``[T, H, W, 3]`` in RGB, frames a second, the receipt of how they were made, and the sound."""

    frames: Frames = field(repr=False)
    fps: int
    receipt: dict[str, Any] = field(default_factory=dict, repr=False)
    sound: Sound | None = field(default=None, repr=False)

    def write(self, path: Path | str, *, encoding: Encoding | None = None, overwrite: bool = False) -> Path:
        """Write a file, by default of the format that its name says, under a temporary name first, then renamed.

        Raises:
            RequestError: the name asks for a format that is none of ours.
            OutputError: the file exists and ``overwrite`` is not set, or the place cannot be written.
        """
        path = Path(path)
        encoding = encoding or encoding_for(path)
        check_output(path, encoding.suffix, overwrite=overwrite)
        publish(path, lambda partial: self.encode(partial, encoding), overwrite=overwrite)
        return path

    def encode(self, path: Path, encoding: Encoding) -> None:
        """Write to this very file; :meth:`write` never leaves half a file.

        Raises:
            OSError: it cannot be written.
        """
        receipt = self.receipt and self.receipt | {"encoding": encoding.model_dump()}
        encode(self.frames, self.fps, receipt, path, encoding, self.sound)


def read_frames(path: Path) -> Frames:
    """All frames of a video file or a folder of frames, uint8 ``[T, H, W, 3]``.

    Raises:
        OutputError: the file is missing or is no video.
    """
    try:
        return np.stack(list(decode_frames(path)))
    except ValueError as error:
        raise OutputError(f"cannot read {path}: {error}") from error


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt a video file carries.

    Raises:
        OutputError: the file is missing or no video, or carries no receipt of ours.
    """
    try:
        receipt = json.loads(read_comment(path))
    except (ValueError, RecursionError):
        receipt = None
    if not isinstance(receipt, dict) or "radial" not in receipt:
        raise OutputError(f"{path} carries no receipt: it was not made by radial, or was re-encoded without metadata")
    return receipt
