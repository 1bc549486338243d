"""The studio of a server, where Gradio is installed."""

from __future__ import annotations

import importlib
import os
import threading
from typing import TYPE_CHECKING

from radial.errors import RequestError
from radial_app.server.limits.sweep import UPLOADS

if TYPE_CHECKING:
    from radial_app.server.service import ServerPaths
    from radial_app.studio.page import StudioPage


def open_studio(paths: ServerPaths) -> StudioPage:
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
    return make_page(paths)
