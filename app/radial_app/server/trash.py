"""Videos that were deleted: what was kept of each, and where its files lie, until they are had again or the trash is
emptied."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from radial.errors import OutputError, RequestError
from radial.files import discard, publish_text
from radial_app.jobs.folder import keep_private
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Visitor

_ID = re.compile(r"[0-9a-f]{8,40}")


class DeletedVideo(BaseModel):
    """A video in the trash."""

    id: str
    prompt: str
    model: str
    deleted_at: float
    bytes: int


@dataclass(frozen=True)
class Trash:
    """What one visitor has deleted; admins see everybody's.

    Args:
        folder: a JSON file for each video.
    """

    folder: Path
    store: JobStore
    visitor: Visitor

    def keep(self, rows: dict[str, Any], moved: Sequence[tuple[str, str]]) -> None:
        """Remember a job that was removed, by its rows, and from where to where its files were moved."""
        keep_private(self.folder)
        kept = rows | {"moved": moved, "deleted": time.time()}
        publish_text(self.folder / f"{rows['job']['id']}.json", json.dumps(kept))

    def list(self) -> list[DeletedVideo]:
        """The videos in it, the latest first."""
        found = []
        for kept in self._all():
            request = json.loads(kept["job"]["request"])
            files = [Path(now) for _, now in kept["moved"]]
            found.append(DeletedVideo(
                id=kept["job"]["id"], prompt=request.get("prompt", ""), model=Path(request.get("model", "")).name,
                deleted_at=kept["deleted"], bytes=sum(file.stat().st_size for file in files if file.is_file()),
            ))  # fmt: skip
        return sorted(found, key=lambda one: one.deleted_at, reverse=True)

    def restore(self, id_: str) -> str:
        """Have a video again, with its files where they were: its id.

        Raises:
            RequestError: it is not in the trash, or another file has taken its place.
            OutputError: a file cannot be moved.
        """
        kept = self._one(id_)
        for before, now in kept["moved"]:
            if Path(before).exists() and Path(now).exists():
                raise RequestError(f"{Path(before).name} is another video's by now: rename that one first")
        try:
            for before, now in kept["moved"]:
                if Path(now).exists():
                    Path(now).rename(before)
        except OSError as error:
            raise OutputError(f"cannot bring {id_} back: {error.strerror}") from error
        self.store.put_back(kept)
        (self.folder / f"{id_}.json").unlink(missing_ok=True)
        return id_

    def empty(self) -> int:
        """Delete all of it for good: how many videos."""
        count = 0
        for kept in self._all():
            for _, now in kept["moved"]:
                if Path(now).parent.name == ".trash":
                    discard(Path(now))
            (self.folder / f"{kept['job']['id']}.json").unlink(missing_ok=True)
            count += 1
        return count

    def _all(self) -> Iterator[dict[str, Any]]:
        for path in self.folder.glob("*.json"):
            if (kept := _read(path)) and (self.visitor.admin or kept["job"].get("owner") == self.visitor.name):
                yield kept

    def _one(self, id_: str) -> dict[str, Any]:
        kept = _read(self.folder / f"{id_}.json") if _ID.fullmatch(id_) else None
        if kept is None or not (self.visitor.admin or kept["job"].get("owner") == self.visitor.name):
            raise RequestError(f"there is no video {id_[:50]!r} in the trash")
        return kept


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept if isinstance(kept["job"]["request"], str) and isinstance(kept["moved"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def move_to_trash(path: Path, name: str) -> Path:
    """Put a file or folder into the folder ``.trash`` beside it: where it lies now.

    Raises:
        OutputError: it cannot be moved.
    """
    trash = path.parent / ".trash"
    try:
        trash.mkdir(exist_ok=True)
        path.rename(trash / name)
        return trash / name
    except OSError as error:
        raise OutputError(f"cannot move {path.name} to the trash: {error.strerror}") from error
