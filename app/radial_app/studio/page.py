"""The studio's page: one document for all of its places, whose own code speaks REST; and beside it, for Gradio's
clients, what they may call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

from radial.version import __version__
from radial_app.server.service import ServerPaths
from radial_app.studio.gradio_api import make_api
from radial_app.studio.gradio_door import API, GradioDoor

ASSETS = Path(__file__).with_name("assets")
# Places of the page that have an address of their own.
PLACES = ("/", "/story", "/story/{id}", "/queue", "/gallery", "/gallery/{id}", "/tune", "/models", "/settings")


@dataclass(frozen=True)
class StudioPage:
    """The page, and the events by which Gradio's clients reach Python: the number of values that each carries."""

    blocks: gr.Blocks
    events: dict[int, int]
    assets = ASSETS

    def protect(self, app: FastAPI) -> None:
        """Close what of Gradio's routes is not used."""
        app.add_middleware(GradioDoor, events=self.events)

    def mount(self, app: FastAPI) -> FastAPI:
        """The application with the studio at ``/``."""
        document = (ASSETS / "page.html").read_text(encoding="utf-8").replace("{version}", __version__)
        router = APIRouter(include_in_schema=False)

        def show() -> HTMLResponse:
            return HTMLResponse(document, headers={"cache-control": "no-cache"})

        for place in PLACES:
            router.add_api_route(place, show, methods=["GET"])
        app.include_router(router)
        mounted = gr.mount_gradio_app(
            app, self.blocks, API, footer_links=[], run_history=False, ssr_mode=False, show_error=False,
            max_file_size=1, allowed_paths=[], blocked_paths=["/"], mcp_server=False, pwa=False,
            auth_dependency=lambda request: request.state.visitor.name or "local",
        )  # fmt: skip
        # Mounted applications are not checked for the files that they name until they count as launched: none may be
        # named here.
        self.blocks.has_launched = True
        # Gradio's own queue, which nothing goes through, looks for work a thousand times a second: a tenth of a core
        # where clips are rendered.
        self.blocks._queue.sleep_when_free = 0.05
        return mounted


def make_page(paths: ServerPaths) -> StudioPage:
    """The page of a server that keeps its things in ``paths``."""
    blocks = make_api(paths)
    events = {number: len(event.inputs) for number, event in blocks.fns.items() if event.fn is not None}
    return StudioPage(blocks, events)
