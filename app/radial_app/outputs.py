"""Where results are written."""

from __future__ import annotations

import re
from pathlib import Path

from radial.request import GenerationRequest
from radial.video import check_output

OUTPUT_FOLDER = Path("outputs")


def output_paths(request: GenerationRequest, output: Path | None, *, overwrite: bool) -> list[Path]:
    """One path a video, checked before work is spent. Names of our own choosing never meet an existing file.

    Raises:
        RequestError: a named file exists, or is no mp4.
        OutputError: the folder cannot be written.
    """
    if output is None:
        stems = [f"{slug(request.prompt)}-{request.seed + index}" for index in range(request.num_videos)]
        paths = [_free(OUTPUT_FOLDER / f"{stem}.mp4") for stem in stems]
    elif request.num_videos == 1:
        paths = [output]
    else:
        paths = [output.with_stem(f"{output.stem}-{index + 1}") for index in range(request.num_videos)]
    for path in paths:
        check_output(path, overwrite=overwrite)
    return paths


def slug(text: str, length: int = 40) -> str:
    """A prompt as a file name: ASCII letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:length].rstrip("-") or "video"


def _free(path: Path) -> Path:
    candidate, count = path, 2
    while candidate.exists():
        candidate, count = path.with_stem(f"{path.stem}-{count}"), count + 1
    return candidate
