"""A clip finished piece by piece: each is on the disk before the next is begun, so that whatever ends the process costs
the one that it is at, and what comes of it is the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radial.files import locked, publish_text
from radial.video.colour import Frame
from radial.video.encoding import Encoding
from radial.video.film import Film, GrowingFilm
from radial.video.finishing.finish import FinishRun
from radial.video.finishing.latents import files_of
from radial.video.finishing.steps import Finish

MOST_FRAMES = 24  # of a piece
_MOST_BYTES = 200_000_000  # of its frames, as they are encoded


def finish_in_pieces(
    clips: Sequence[Path], what: Finish, folder: Path, *, encoding: Encoding | None = None, device: str = "cpu",
    on_frame: Callable[[int, int], None] = lambda done, total: None,
    on_piece: Callable[[Frame], None] = lambda frame: None, look: Callable[[], None] = lambda: None,
) -> tuple[Film, tuple[str, ...]]:  # fmt: skip
    """Finish a clip, or several one after the other, into a film that grows in a folder; it goes on there from the last
    whole piece, where the clips and what is asked for are the same.

    Args:
        encoding: MP4 of H.264; its ``crf`` is heeded.
        device: where an upscaler computes.
        on_frame: told how many frames are made, and about how many there will be.
        on_piece: told of each piece that is on the disk, by its last frame.
        look: called at every frame that is read or made; what it raises ends the run.

    Returns:
        The film, and what the user should hear.

    Raises:
        RequestError: a value or a file cannot be.
        OutputError: a clip cannot be read, or the folder not be written.
    """
    encoding = encoding or Encoding()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", "this clip is being finished by another process"):
        clip = FinishRun.prepare(clips, what, device)
        sound, notes = clip.sound(encoding)
        key = _key(clips, clip, encoding)
        size, frames = _begun(folder, key)
        crf = {} if encoding.crf is None else {"crf": encoding.crf}
        film = GrowingFilm(folder / "film.mp4", clip.rate, size=size, frames=frames, **crf)
        made: list[Frame] = []

        def append() -> None:
            film.append(np.stack(made))
            last = made[-1]
            made.clear()
            told = {"key": key, "size": film.size, "frames": film.frames}
            publish_text(folder / "finished.json", json.dumps(told))
            on_piece(last)

        try:
            on_frame(frames, max(clip.count, frames))
            for later in itertools.islice(clip.frames(folder, look), frames, None):
                look()
                made.append(later())
                done = film.frames + len(made)
                if len(made) == frames_of_piece(clip.height, clip.width):
                    append()
                on_frame(done, max(clip.count, done))
            if made:
                append()
        finally:
            film.close()
    return Film(folder / "film.mp4", clip.receipt(), sound=sound), notes


def frames_of_piece(height: int, width: int) -> int:
    """Frames of a piece: fewer where they are large."""
    return max(1, min(MOST_FRAMES, _MOST_BYTES // (3 * height * width)))


def _key(clips: Sequence[Path], clip: FinishRun, encoding: Encoding) -> dict[str, Any]:
    """What pieces are of: of something else, they are none of ours."""
    import av

    files = [*clips, *(files_of(Path(clip.what.upscaler)) if clip.what.upscaler else [])]
    return {
        "format": 1, "what": clip.what.model_dump(mode="json"), "size": [clip.height, clip.width],
        "rate": str(clip.rate), "crf": encoding.crf, "encoder": av.__version__,
        "files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }  # fmt: skip


def _begun(folder: Path, key: dict[str, Any]) -> tuple[int, int]:
    """Bytes and frames that are there already."""
    try:
        told = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
        size, frames = int(told["size"]), int(told["frames"])
        is_whole = told["key"] == key and (folder / "film.mp4").stat().st_size >= size
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0, 0
    return (size, frames) if is_whole else (0, 0)
