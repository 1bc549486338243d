"""Policies that everybody of a server uses: files of ``radial profile``."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, File, Request, Response, UploadFile
from pydantic import BaseModel

from radial.errors import RadialError, RequestError
from radial.plans.drawing import draw_work
from radial.plans.measured.policy_file import bundled_policies, policy_path, read_policy
from radial_app.server.service import Missing, ServerPaths, Service
from radial_app.server.trash import move_to_trash
from radial_app.server.uploads import take_policy
from radial_app.server.views import Deleted


class Policy(BaseModel):
    """A policy in the data folder, and what it was measured on."""

    id: str
    model: str = ""
    height: int = 0
    width: int = 0
    num_frames: int = 0
    least_share: float = 0.0
    bundled: bool = False
    problem: str = ""


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1/policies", tags=["adapters"])

    def found(request: Request) -> dict[str, Path]:
        own = Service(paths, request.state.visitor).inputs.policies()
        return own | {name: policy_path(name) for name in bundled_policies()}

    @router.get("")
    def list_policies(request: Request) -> list[Policy]:
        """The policies in the data folder, and those that come with the package."""
        return [policy_of(name, path) for name, path in found(request).items()]

    @router.get("/{name}/work.png")
    def draw(request: Request, name: str, target_share: float | None = None, steps: int = 20) -> Response:
        """A picture of how much of its attention each layer computes at each step."""
        if (path := found(request).get(name)) is None:
            raise Missing(f"there is no policy {name[:200]!r}")
        if not 1 <= steps <= 1000:
            raise RequestError(f"steps must be 1 to 1000, not {steps}")
        file = read_policy(path)
        policy = file.policy(target_share, None)
        layers = range(file.error_KLM.shape[1])
        work = [[file.shares[policy.choose(layer, step, steps)] for step in range(steps)] for layer in layers]
        content = io.BytesIO()
        draw_work(np.array(work, np.float64), name).save(content, "PNG")
        return Response(content.getvalue(), media_type="image/png", headers={"cache-control": "private, no-cache"})

    @router.post("")
    def upload_policy(request: Request, file: Annotated[UploadFile, File()]) -> Policy:
        """Bring a policy, a file of ``radial profile``."""
        if not request.state.visitor.admin:
            raise RequestError("only admins add policies: everybody uses them")
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
            shutil.copyfileobj(file.file, copy, 1 << 20)
            copy.flush()
            try:
                name = take_policy(paths.data, file.filename or "policy", Path(copy.name))
            except RadialError as error:
                raise RequestError(str(error).replace(Path(copy.name).name, "the file")) from error
        return policy_of(name, paths.data / "policies" / name)

    @router.delete("/{name}")
    def delete_policy(request: Request, name: str) -> Deleted:
        """Forget a policy; its file goes into the trash beside it."""
        if not request.state.visitor.admin:
            raise RequestError("only admins delete policies: everybody uses them")
        if (path := Service(paths, request.state.visitor).inputs.policies().get(name)) is None:
            raise Missing(f"there is no policy {name[:200]!r}")
        move_to_trash(path, f"{os.urandom(4).hex()}-{name}")
        return Deleted(id=name)

    return router


def policy_of(name: str, path: Path) -> Policy:
    """A policy's file as the web sees it."""
    bundled = name.startswith("bundled:")
    try:
        file = read_policy(path)
    except RadialError as error:
        return Policy(id=name, bundled=bundled, problem=str(error))
    about = file.about
    return Policy(
        id=name, model=about.model, height=about.height, width=about.width, num_frames=about.num_frames,
        least_share=round(float(file.shares.min()), 4), bundled=bundled,
    )  # fmt: skip
