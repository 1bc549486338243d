"""Tools for agents, over MCP through Gradio: the same desk as the REST interface's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from radial.errors import RadialError
from radial_app.jobs import FINISHED
from radial_app.web.desk import WAITING, Desk
from radial_app.web.views import read_request

_SHOWN = ("id", "status", "progress", "prompt", "model", "seconds", "size", "eta", "error")


def add_tools(desk: Callable[[gr.Request], Desk]) -> None:
    """Name the tools, inside a ``gr.Blocks``.

    Unqueued: Gradio would call queued ones back over HTTP, without the key of who asked.
    """

    def generate_video(
        request: gr.Request, prompt: str, model: str = "tiny", seconds: float = 0, size: str = "", seed: int = -1
    ) -> dict[str, Any]:
        """Put a video into the queue. It is made in the background: ask video_status until its status is completed.

        Args:
            prompt: what the clip shows
            model: a model's name; tiny works everywhere
            seconds: length of the clip; 0 for the model's own
            size: WIDTHxHEIGHT in pixels; empty for the model's own
            seed: the same seed gives the same clip; -1 draws one
        """
        fields = {"prompt": prompt, "model": model, "seed": seed}
        fields |= ({"seconds": seconds} if seconds else {}) | ({"size": size} if size else {})
        with _told():
            here = desk(request)
            (job,) = here.add([here.check(read_request(fields))])
            return _short(here, job)

    def video_status(request: gr.Request, video_id: str) -> dict[str, Any]:
        """How a video stands, and where its file can be fetched once it is completed.

        Args:
            video_id: what generate_video returned
        """
        with _told():
            here = desk(request)
            return _short(here, here.get(video_id))

    def list_videos(request: gr.Request, limit: int = 10) -> list[dict[str, Any]]:
        """The latest videos, those that wait and those that ended.

        Args:
            limit: how many, at most 100
        """
        with _told():
            here = desk(request)
            jobs = here.store.page(WAITING + FINISHED, owner=here.visitor.scope, limit=max(1, min(100, limit)))
            return [_short(here, job) for job in jobs]

    for tool in (generate_video, video_status, list_videos):
        gr.api(tool, api_name=tool.__name__, queue=False)  # type: ignore[attr-defined]


class _told:
    """Errors that an agent can read."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RadialError):
            raise gr.Error(str(error), print_exception=False) from error


def _short(here: Desk, job: Any) -> dict[str, Any]:
    video = here.view(job).model_dump(mode="json")
    told = {name: video[name] for name in _SHOWN}
    return told | {"content": [f"/v1/videos/{job.id}/content?index={file['index']}" for file in video["files"]]}
