"""Models on their way onto the server's disk: tasks that run ``radial download``, and how far they are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from radial.models.find import HUB_ID
from radial_app.server.access import admins_only
from radial_app.server.service import Conflict, Missing, ServerPaths, Service
from radial_app.tuning.tasks import Task, read_json

_MOST = 1000


class ModelDownload(BaseModel):
    """A model's download: bytes that are here, of the whole."""

    id: str
    state: Literal["running", "done", "stopped", "failed"]
    done: int
    total: int
    problem: str = ""


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""

    only_admins = Depends(admins_only("only admins download models: everybody uses them"))
    router = APIRouter(prefix="/v1/downloads", tags=["files"], dependencies=[only_admins])
    folder = paths.data / "downloads"

    @router.get("")
    def list_downloads() -> list[ModelDownload]:
        """Downloads since the data folder began, the latest of each model."""
        return [_look(path.parent) for path in sorted(folder.glob("*/task.json"))][:_MOST]

    @router.post("/{id:path}")
    def start_download(request: Request, id: str) -> ModelDownload:
        """Download a model by its name or hub id, or go on where it was cut off."""
        name = Service(paths, request.state.visitor).inputs.translate({"model": id})["model"]
        task = Task(_folder(folder, name))
        if task.living:
            raise Conflict(f"model {name} is on its way already")
        (task.folder / "progress.json").unlink(missing_ok=True)
        task.start(["download", "--tell", str(task.folder / "progress.json"), "--", name], id=name)
        return _look(task.folder)

    @router.delete("/{id:path}")
    def stop_download(id: str) -> ModelDownload:
        """Stop a download; what came is kept."""
        task = Task(_folder(folder, id))
        if not task.stop():
            raise Missing(f"model {id[:200]!r} is not on its way")
        task.wait(10)
        return _look(task.folder)

    return router


def _folder(folder: Path, name: str) -> Path:
    """Where the download of a model is kept; hub ids hold a slash."""
    if not HUB_ID.fullmatch(f"any/{name}") and not HUB_ID.fullmatch(name):
        raise Missing(f"model {name[:200]!r} cannot be downloaded")
    return folder / name.replace("/", "--")


def _look(folder: Path) -> ModelDownload:
    task = Task(folder)
    progress, last = read_json(folder / "progress.json"), task.last_words()
    state: Literal["running", "done", "stopped", "failed"] = "failed"
    if task.living:
        state = "running"
    elif Path(last).is_absolute():  # the last thing that it prints is the folder
        state = "done"
    elif task.told.get("stopping"):
        state = "stopped"
    done, total = (count if type(count := progress.get(name)) is int else 0 for name in ("done", "total"))
    return ModelDownload(
        id=str(task.told.get("id", folder.name)), state=state, done=done, total=total,
        problem=last if state == "failed" else "",
    )  # fmt: skip
