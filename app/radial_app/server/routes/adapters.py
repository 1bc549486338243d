"""Adapters that everybody of a server uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Request, UploadFile
from pydantic import BaseModel

from radial.errors import RadialError, RequestError
from radial.models.lora_settings import (
    AdapterSettings,
    adapter_file,
    bundled_adapters,
    check_adapter_file,
    read_adapter_settings,
)
from radial_app.server.service import Missing, ServerPaths, Service
from radial_app.server.trash import move_to_trash
from radial_app.server.uploads import take_adapter
from radial_app.server.views import Deleted


class Adapter(BaseModel):
    """An adapter in the data folder, and what it says of itself; ``remembers`` where it was tuned for stories."""

    id: str
    bytes: int
    base_model: str | None = None
    target_frames: int | None = None
    trigger: str = ""
    remembers: dict[str, Any] | None = None
    bundled: bool = False
    problem: str = ""


class AdapterReport(BaseModel):
    """What an adapter's file holds, and in which models it acts, line by line."""

    id: str
    lines: list[str]


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1", tags=["adapters"])

    @router.get("/adapters")
    def list_adapters(request: Request) -> list[Adapter]:
        """The adapters in the data folder, and those that come with the package."""
        found = Service(paths, request.state.visitor).inputs.adapters()
        own = [adapter_of(name, path) for name, path in found.items()]
        bundled = (adapter_of(name, adapter_file(name)) for name in bundled_adapters())
        return [*own, *(one.model_copy(update={"bundled": True}) for one in bundled)]

    @router.get("/adapters/{name}")
    def inspect_adapter(request: Request, name: str) -> AdapterReport:
        """What an adapter holds, and in which models it acts, as ``radial lora`` tells it."""
        found = Service(paths, request.state.visitor).inputs.adapters()
        if name not in found and name not in bundled_adapters():
            raise Missing(f"there is no adapter {name[:200]!r}")
        from radial.adapters.file import read_adapter
        from radial.adapters.report import report_on

        path = found[name] if name in found else adapter_file(name)
        check_adapter_file(path)
        return AdapterReport(id=name, lines=[": ".join(row) for row in report_on(read_adapter(path)).rows()])

    @router.post("/adapters")
    def upload_adapter(request: Request, file: Annotated[UploadFile, File()]) -> Adapter:
        """Bring an adapter, a safetensors file."""
        if not request.state.visitor.admin:
            raise RequestError("only admins add adapters: everybody uses them")
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
            shutil.copyfileobj(file.file, copy, 1 << 20)
            copy.flush()
            try:
                name = take_adapter(paths.data, file.filename or "adapter", Path(copy.name))
            except RadialError as error:
                raise RequestError(
                    f"this is no adapter of safetensors: {str(error).replace(Path(copy.name).name, 'the file')}"
                ) from error
        return adapter_of(name, paths.data / "adapters" / name)

    @router.delete("/adapters/{name}")
    def delete_adapter(request: Request, name: str) -> Deleted:
        """Forget an adapter; its file goes into the trash beside it."""
        if not request.state.visitor.admin:
            raise RequestError("only admins delete adapters: everybody uses them")
        if (path := Service(paths, request.state.visitor).inputs.adapters().get(name)) is None:
            raise Missing(f"there is no adapter {name[:200]!r}")
        move_to_trash(path, f"{os.urandom(4).hex()}-{name}")
        return Deleted(id=name)

    return router


def adapter_of(name: str, path: Path) -> Adapter:
    """An adapter file as the web sees it."""
    try:
        check_adapter_file(path)
        settings = read_adapter_settings(path) or AdapterSettings()
    except RadialError as error:
        return Adapter(id=name, bytes=path.stat().st_size, problem=str(error))
    return Adapter(id=name, bytes=path.stat().st_size, base_model=settings.base_model,
                   target_frames=settings.target_frames, trigger=settings.trigger,
                   remembers=None if settings.memory is None else settings.memory.model_dump())  # fmt: skip
