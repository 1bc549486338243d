"""Videos as real files, and how the tests cut them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from radial_finetune.data.buckets import Bucket
from radial_finetune.data.clips import Cut

CUT = Cut((Bucket(9, 32, 32),), fps=16)


def write_video(path: Path, frames: Any, fps: int = 16) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
