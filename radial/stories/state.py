"""A film in the making, on disk: the film so far, and of each finished piece what the next ones need.

    film.story/
        story.json          what the pieces are of
        film.mp4            all of them so far, playable
        pieces/000000.safetensors

A piece is written once its frames are in the film, with the film's size then: a process that is killed loses the piece
it was at, and what the film holds beyond the last whole piece is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from radial.errors import OutputError, RequestError
from radial.files import discard, publish, publish_text

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 1


def state_folder(output: Path) -> Path:
    """Where a film is in the making, beside where it will be."""
    return output.with_name(f"{output.stem}.story")


@dataclass(frozen=True, eq=False)
class Piece:
    """A finished piece.

    Attributes:
        about: a digest of all that it is of: the story so far and how it was made.
        tensors: what the pieces after it need.
        size, frames: the film's bytes and frames, this piece included.
        seconds: that making it took.
    """

    about: str
    tensors: dict[str, Tensor] = field(repr=False)
    size: int = 0
    frames: int = 0
    seconds: float = 0.0


class FilmState:
    """The folder of a film in the making."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def film(self) -> Path:
        """The film so far."""
        return self.folder / "film.mp4"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from the folder, which is there while the context lasts; where nothing was begun in it,
        it goes again.

        Raises:
            OutputError: another process has it, or it cannot be written.
        """
        path = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, blocking=False)
            lock.acquire()
        except Timeout as error:
            problem = OutputError(f"the film of {self.folder} is being made by another command")
            problem.errno = errno.EBUSY  # it passes
            raise problem from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if [file.name for file in self.folder.iterdir()] == [path.name]:
                    path.unlink()
                    self.folder.rmdir()
            lock.release()

    def begin(self, told: dict[str, Any]) -> None:
        """Make the folder, and write down what it is of.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            (self.folder / "pieces").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        publish_text(self.folder / "story.json", json.dumps(told | {"format": _FORMAT}, indent=1, ensure_ascii=False))

    def told(self) -> dict[str, Any]:
        """What the folder says that it is of; nothing where that cannot be read."""
        try:
            told = json.loads((self.folder / "story.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return told if isinstance(told, dict) else {}

    def take_over(self, base: FilmState) -> dict[str, Any]:
        """Have the pieces of another film, where nothing was begun here yet: what that one is of.

        Pieces never change, so they are shared where the disk can; the film, which grows, is a copy. Doing it again
        after a crash does no harm.

        Raises:
            RequestError: the other film is not there any more.
            OutputError: it is being made, or a place cannot be written.
        """
        with base.locked():
            told = base.told()
            if not told or not base.film.is_file():
                raise RequestError(
                    f"what this film goes on from, {base.folder}, is not there any more: make it as a story of its own"
                )
            publish(self.film, lambda partial: shutil.copyfile(base.film, partial), overwrite=True)
            number = 0
            while (file := base._path(number)).is_file():
                publish(self._path(number), functools.partial(_share, file), overwrite=True)
                number += 1
        return told

    def add(self, number: int, piece: Piece) -> None:
        """Write a piece, under a temporary name first.

        Raises:
            OutputError: the place cannot be written.
        """
        from safetensors.torch import save_file

        told = {"format": _FORMAT, "about": piece.about, "size": piece.size, "frames": piece.frames,
                "seconds": piece.seconds}  # fmt: skip
        tensors = {name: x.cpu().contiguous() for name, x in piece.tensors.items()}
        publish(
            self._path(number),
            lambda partial: save_file(tensors, partial, {"radial": json.dumps(told)}),
            overwrite=True,
        )

    def pieces(self) -> Iterator[Piece]:
        """The whole pieces from the first on, up to one that is missing or cannot be read.

        Raises:
            RequestError: they are of another version of this folder.
        """
        from safetensors import SafetensorError, safe_open

        number = 0
        while self._path(number).is_file():
            try:
                with safe_open(self._path(number), "pt") as file:
                    told = json.loads((file.metadata() or {})["radial"])
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                took = float(told.get("seconds", 0.0))  # not told by earlier versions
                version = told["format"]
                piece = Piece(told["about"], tensors, int(told["size"]), int(told["frames"]), took)
            except (OSError, SafetensorError, ValueError, KeyError, TypeError):
                return
            if version != _FORMAT:
                raise RequestError(f"{self.folder} was made by another version; take another --output")
            yield piece
            number += 1

    def mark_of(self, number: int) -> str | None:
        """What tells a piece, and the film up to it, from every other one; None where it cannot be read."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(number), "numpy") as file:
                told = json.loads((file.metadata() or {})["radial"])
            return f"{int(told['size'])}-{told['about']}"
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def drop_from(self, number: int) -> None:
        """Forget the pieces from a number on, also those behind a gap, and what was never finished.

        Raises:
            OutputError: they cannot be removed.
        """
        pieces = (self.folder / "pieces").glob("*.safetensors")
        try:
            for file in [one for one in pieces if one.stem.isdecimal() and int(one.stem) >= number]:
                file.unlink()
        except OSError as error:
            raise self._unwritable(error) from error
        for file in [*self.folder.rglob(".*.partial.*")]:
            discard(file)

    def _unwritable(self, error: OSError) -> OutputError:
        problem = OutputError(f"cannot write {self.folder}: {error.strerror}")
        problem.errno = error.errno  # a full disk passes, other reasons stay
        return problem

    def _path(self, number: int) -> Path:
        return self.folder / "pieces" / f"{number:06d}.safetensors"


def _share(file: Path, partial: Path) -> None:
    """Give a file another name, or copy it where the disk knows no such thing."""
    try:
        os.link(file, partial)
    except OSError:
        shutil.copyfile(file, partial)
