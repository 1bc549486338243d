"""A finished clip: its frames, how it is written to a file and read back, and the receipt the file carries."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radial.errors import OutputError, RequestError


@dataclass(frozen=True, eq=False)
class Video:
    """Frames uint8 ``[T, H, W, 3]`` in RGB, frames a second, and the receipt of how they were made."""

    frames: NDArray[np.uint8] = field(repr=False)
    fps: int
    receipt: dict[str, Any] = field(default_factory=dict, repr=False)

    def write(self, path: Path, *, overwrite: bool = False) -> Path:
        """Write an H.264 mp4 of exactly the frames' size, under a temporary name first, then renamed.

        Raises:
            OutputError: the file exists and ``overwrite`` is not set, or the place cannot be written.
        """
        check_output(path, overwrite=overwrite)
        partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial.mp4")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._encode(partial)
            if overwrite:
                os.replace(partial, path)
            else:
                # A link fails if the name was taken meanwhile; a rename would overwrite.
                os.link(partial, path)
        except FileExistsError as error:
            raise OutputError(f"{path} exists; pass --overwrite or another --output") from error
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _encode(self, path: Path) -> None:
        import av

        _, height, width, _ = self.frames.shape
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            if self.receipt:
                container.metadata["comment"] = json.dumps(self.receipt, ensure_ascii=False, sort_keys=True)
            stream = container.add_stream("libx264", rate=Fraction(self.fps), options={"crf": "16", "preset": "medium"})
            stream.width, stream.height = width, height
            # Chroma at half size needs even sides; odd clips keep it whole rather than lose a row.
            stream.pix_fmt = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
            stream.codec_context.thread_count = 1  # several threads would make files differ between machines
            for image in self.frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise before work is spent on a clip that could not be written.

    Raises:
        RequestError: the file exists, or is no mp4.
        OutputError: the folder cannot be written.
    """
    if path.suffix.lower() != ".mp4":
        raise RequestError(f"output must end in .mp4, not {path.name!r}")
    if path.is_dir():
        raise RequestError(f"{path} is a folder; give a file name")
    if path.exists() and not overwrite:
        raise RequestError(f"{path} exists; pass --overwrite or another --output")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: {folder} is not a folder that can be written")


def read_frames(path: Path) -> NDArray[np.uint8]:
    """All frames of a video file, uint8 ``[T, H, W, 3]``.

    Raises:
        OutputError: the file is missing or is no video.
    """
    import av

    with _open(path) as container:
        try:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        except (av.FFmpegError, ValueError, IndexError) as error:
            raise OutputError(f"cannot read {path}: {error}") from error


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt a video file carries.

    Raises:
        OutputError: the file is missing or no video, or carries no receipt of ours.
    """
    with _open(path) as container:
        comment = container.metadata.get("comment", "")
    try:
        receipt = json.loads(comment)
    except ValueError:
        receipt = None
    if not isinstance(receipt, dict) or "radial" not in receipt:
        raise OutputError(f"{path} carries no receipt: it was not made by radial, or was re-encoded without metadata")
    return receipt


def _open(path: Path) -> Any:
    import av

    if not path.is_file():
        raise OutputError(f"no such file: {path}")
    try:
        return av.open(str(path))
    except av.FFmpegError as error:
        raise OutputError(f"{path} is not a video that can be read: {error.strerror}") from error
