"""``/v1/presets``: settings under names of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel

from radial_app.server.service import ServerPaths, Service
from radial_app.server.uploads import name_adapters
from radial_app.server.views import Deleted


class Preset(BaseModel):
    """Settings by name; ``preset`` of a request takes them."""

    name: str
    fields: dict[str, Any]


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1/presets", tags=["videos"])

    @router.get("")
    def list_presets(request: Request) -> list[Preset]:
        """Your own settings by name."""
        found = Service(paths, request.state.visitor).inputs.presets.all()
        return [_as_written(name, fields) for name, fields in found.items()]

    @router.put("/{name}")
    def keep_preset(request: Request, name: str, fields: Annotated[dict[str, Any], Body()]) -> Preset:
        """Keep settings under a name: those among the fields of a request, without what the clip is of."""
        inputs = Service(paths, request.state.visitor).inputs
        files = {field: value for field, value in fields.items() if field in ("loras", "decoder", "policy")}
        inputs.presets.keep(name, fields | inputs.translate(files))
        return _as_written(name, inputs.presets.get(name))

    @router.delete("/{name}")
    def forget_preset(request: Request, name: str) -> Deleted:
        """Forget settings."""
        Service(paths, request.state.visitor).inputs.presets.forget(name)
        return Deleted(id=name)

    return router


def _as_written(name: str, fields: dict[str, Any]) -> Preset:
    named: dict[str, Any] = {"loras": name_adapters(fields["loras"])} if "loras" in fields else {}
    if "policy" in fields:
        named["policy"] = Path(fields["policy"]).name  # of one that comes with the package it is all
    return Preset(name=name, fields=fields | named)
