"""Where results are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from radial.errors import OutputError, RequestError
from radial.files import check_output, publish
from radial.request import GenerationRequest
from radial.video import Video

if TYPE_CHECKING:
    from torch import Tensor

OUTPUT_FOLDER = Path("outputs")


def output_paths(request: GenerationRequest, output: Path | None, *, overwrite: bool) -> list[Path]:
    """One path a video, checked before work is spent.

    Raises:
        RequestError: a named file exists, or is no mp4.
        OutputError: the folder cannot be written.
    """
    if output is None:
        stems = [f"{slug(request.prompt)}-{request.seed + index}" for index in range(request.num_videos)]
        paths = [free_name(OUTPUT_FOLDER / f"{stem}.mp4") for stem in stems]
    elif request.num_videos == 1:
        paths = [output]
    else:
        paths = [output.with_stem(f"{output.stem}-{index + 1}") for index in range(request.num_videos)]
    for path in paths:
        check_output(path, ".mp4", overwrite=overwrite)
    return paths


def write_to_free_name(video: Video, path: Path) -> Path:
    """Write to a name of our own choosing; if it was taken meanwhile, to the next."""
    while True:
        path = free_name(path)
        try:
            return video.write(path)
        except (RequestError, OutputError):
            if not path.exists():
                raise


def write_latents(latents: Tensor, path: Path) -> Path:
    """Write latents of a clip that could not be finished."""
    from safetensors.torch import save_file

    publish(path, lambda partial: save_file({"latents": latents.contiguous()}, partial), overwrite=False)
    return path


def slug(text: str, length: int = 60) -> str:
    """A prompt as a file name: ASCII letters, digits and dashes, cut between words."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(words) > length:
        words = words[: length + 1].rpartition("-")[0] or words[:length]
    return words or "video"


def free_name(path: Path) -> Path:
    """The path itself, or the first of path-2, path-3, ... that does not exist."""
    candidate, count = path, 2
    while candidate.exists():
        candidate, count = path.with_stem(f"{path.stem}-{count}"), count + 1
    return candidate
