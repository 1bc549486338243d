"""What Gradio's clients, in Python, JavaScript and other Spaces, may call: ``Client(URL + "/gradio").predict(...)``."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
from gradio.events import api

from radial.errors import RadialError
from radial_app.server.service import ServerPaths, Service
from radial_app.server.views import read_request

_WAITING = 32  # calls at a time
_SESSIONS = 16  # of clients, which Gradio keeps something of


def make_api(paths: ServerPaths) -> gr.Blocks:
    """The calls of a server that keeps its things in ``paths``; they take text and numbers, and answer with JSON."""

    def service(request: gr.Request) -> Service:
        return Service(paths, request.request.scope["state"]["visitor"])  # type: ignore[union-attr]

    def generate(
        prompt: str, model: str, size: str, seconds: float, seed: float, more: str, request: gr.Request
    ) -> dict[str, Any]:
        """Put a video into the queue: ask ``/status`` until it is completed.

        Args:
            prompt: what the clip shows.
            model: a model's name; nothing for the bundled one.
            size: WIDTHxHEIGHT in pixels; nothing for the model's own.
            seconds: length; 0 for the model's own.
            seed: the same seed gives the same clip; -1 draws one.
            more: other fields of a request, as a JSON object.
        """
        fields = json.loads(more or "{}") | {"prompt": prompt, "seed": int(seed)}
        fields |= {name: value for name, value in (("model", model), ("size", size), ("seconds", seconds)) if value}
        written, output, finish = read_request(fields)
        here = service(request)
        (job,) = here.add([here.check(written)], output, finish)
        return _told(here, job.id)

    def status(video_id: str, request: gr.Request) -> dict[str, Any]:
        """How a video stands, and where its file can be fetched once it is completed."""
        return _told(service(request), video_id)

    def explained(call: Any) -> Any:
        """Have what a user did wrong reach the client as words."""
        import functools

        @functools.wraps(call)
        def run(*values: Any, **named: Any) -> Any:
            try:
                return call(*values, **named)
            except RadialError as error:
                raise gr.Error(paths.without_paths(str(error)), print_exception=False) from error
            except (ValueError, TypeError) as error:
                raise gr.Error("more must be a JSON object of a request's fields", print_exception=False) from error

        return run

    with gr.Blocks(mode="server", analytics_enabled=False, title="Radial") as blocks:
        for call in (generate, status):
            api(explained(call), api_name=call.__name__)
    blocks.queue(max_size=_WAITING, default_concurrency_limit=2)
    blocks.state_session_capacity = _SESSIONS
    return blocks


def _told(service: Service, id_: str) -> dict[str, Any]:
    video = service.view(service.get(id_)).model_dump(mode="json", include=_TOLD)
    return video | {"content": [f"/v1/videos/{video['id']}/content?index={file['index']}" for file in video["files"]]}


_TOLD = {"id", "status", "progress", "eta", "error", "model", "prompt", "seconds", "size", "files"}
