"""An application behind real connections: TestClient does not stream with every version of starlette."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from radial_app.server.limits.connections import Connection


@contextlib.contextmanager
def serving(app: Any, **more: Any) -> Iterator[int]:
    """The application, as ``radial serve`` has it: its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", http=Connection, ws="none", **more))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)
