"""``/v1/trash``: deleted videos, brought back or gone for good."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel

from radial_app.server.service import ServerPaths, Service
from radial_app.server.trash import DeletedVideo
from radial_app.server.views import Video


class Emptied(BaseModel):
    """How many videos are gone for good."""

    videos: int


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1/trash", tags=["videos"])

    @router.get("")
    def list_trash(request: Request) -> list[DeletedVideo]:
        """The videos that were deleted, the latest first."""
        return Service(paths, request.state.visitor).trash.list()

    @router.post("/{id}/restore")
    def restore_video(request: Request, id: str) -> Video:
        """Have a deleted video again, with its file where it was."""
        here = Service(paths, request.state.visitor)
        return here.view(here.get(here.trash.restore(id)))

    @router.delete("")
    def empty_trash(request: Request) -> Emptied:
        """Delete all that is in the trash, for good."""
        return Emptied(videos=Service(paths, request.state.visitor).trash.empty())

    return router
