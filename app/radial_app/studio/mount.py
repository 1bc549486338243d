"""The studio in a server: Gradio's routes, with what of them is open."""

from __future__ import annotations

import importlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from radial.errors import RequestError
from radial_app.server.limits.sweep import UPLOADS
from radial_app.studio.gradio_door import GradioDoor

if TYPE_CHECKING:
    from fastapi import FastAPI

    from radial_app.server.service import ServerPaths
    from radial_app.studio.page import StudioPage


class Studio:
    """The studio's page in a server's application."""

    assets = Path(__file__).with_name("assets")

    def __init__(self, page: StudioPage) -> None:
        self._page = page

    def protect(self, app: FastAPI) -> None:
        """Close what of Gradio's routes the page does not use."""
        app.add_middleware(GradioDoor, events=self._page.events)

    def mount(self, app: FastAPI) -> FastAPI:
        """The application with the studio at ``/``."""
        import gradio

        from radial_app.studio.page import HEAD, theme

        app.include_router(self._page.router)
        mounted = gradio.mount_gradio_app(
            app, self._page.blocks, "/", head=HEAD, theme=theme(), footer_links=[], run_history=False, ssr_mode=False,
            show_error=False, max_file_size=1, allowed_paths=[], blocked_paths=["/"], mcp_server=False, pwa=False,
            auth_dependency=lambda request: request.state.visitor.name or "local",
        )  # fmt: skip
        # Mounted pages are not checked for the files that they name until they count as launched: none may be named
        # here.
        self._page.blocks.has_launched = True
        # Gradio's own queue, which nothing goes through, looks for work a thousand times a second: a tenth of a core
        # where clips are rendered.
        self._page.blocks._queue.sleep_when_free = 0.05
        return mounted


def open_studio(paths: ServerPaths) -> Studio:
    """The studio of a server that keeps its things in ``paths``.

    Raises:
        RequestError: Gradio is not installed.
    """
    # Read when Gradio is first imported: nothing is sent or kept elsewhere.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(paths.data / UPLOADS)}
    try:
        from radial_app.studio.page import make_page
    except ImportError as error:
        raise RequestError("the studio needs more packages: pip install 'radial-video[studio]'") from error

    # What the first check needs takes seconds to load; nobody should wait for it.
    threading.Thread(target=lambda: importlib.import_module("radial.plans.sketch"), daemon=True).start()
    return Studio(make_page(paths))
