"""A finished clip: its frames, how it is written to a file and read back, and the receipt the file carries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radial.errors import OutputError
from radial.files import check_output, publish


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
        check_output(path, ".mp4", overwrite=overwrite)
        publish(path, self._encode, overwrite=overwrite)
        return path

    def _encode(self, path: Path) -> None:
        import av

        _, height, width, _ = self.frames.shape
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            if self.receipt:
                container.metadata["comment"] = json.dumps(self.receipt, ensure_ascii=False, sort_keys=True)
            # On small frames x264's macroblock tree reads memory it never wrote, and its threads race: without
            # either, the same frames always make the same file.
            options = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0:threads=1:lookahead-threads=1"}
            stream = container.add_stream("libx264", rate=Fraction(self.fps), options=options)
            stream.width, stream.height = width, height
            # Chroma at half size needs even sides; odd clips keep it whole rather than lose a row.
            stream.pix_fmt = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
            stream.codec_context.thread_count = 1
            for image in self.frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)


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
