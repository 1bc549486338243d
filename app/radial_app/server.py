"""``radial serve``: keeps workers alive, and tells how the queue stands over HTTP."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from radial.errors import OutputError, RequestError
from radial_app.options import DataDir, Device, PerDevice, SnapshotSeconds
from radial_app.pool import WorkerPool, own_devices
from radial_app.store import JobStore

log = logging.getLogger("radial.server")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TICK = 1.0


class Caretaker(threading.Thread):
    """Keeps workers alive and takes jobs of dead ones back, until told to stop."""

    def __init__(self, folder: Path, pool: WorkerPool) -> None:
        super().__init__(daemon=True, name="caretaker")
        self._folder, self._pool = folder, pool
        self._stop_it = threading.Event()
        self.problem = ""

    def run(self) -> None:
        """Look after them every second."""
        with JobStore(self._folder) as store:
            while not self._stop_it.wait(_TICK):
                try:
                    self._pool.tend()
                    store.recover()
                    self.problem = ""
                except Exception as error:  # whatever it is: the next look may go well
                    if self.problem != str(error):
                        log.error("%s", error)
                    self.problem = str(error) or type(error).__name__

    def end(self) -> None:
        """Stop looking, and have the workers stop after their step."""
        self._stop_it.set()
        self.join()
        self._pool.stop(30)
        self._pool.kill()
        self._pool.stop_inherited(30)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 7860,
    device: Device = None,
    jobs_per_device: PerDevice = 1,
    snapshot_seconds: SnapshotSeconds = 30.0,
    data_dir: DataDir = None,
) -> None:
    """Keep a worker on each device, and answer /healthz and /metrics."""
    try:
        import uvicorn

        from radial_app.rest import make_app
    except ImportError as error:
        raise RequestError("serve needs more packages: pip install 'radial-video[server]'") from error
    from radial_app.worker import log_to

    if host not in LOOPBACK:
        raise RequestError(f"there are no accounts yet, so only {', '.join(LOOPBACK)} can be listened on, not {host}")
    with JobStore(data_dir) as store, store.locks.slot("server") as alone:
        if not alone:
            raise RequestError(f"another server keeps the queue in {store.folder}")
        listener = _listen(host, port)  # before any worker is started or asked to stop
        log_to(store.folder / "logs" / "server.jsonl")
        pool = WorkerPool(
            store, device or own_devices(), per_device=jobs_per_device, until_idle=False,
            snapshot_seconds=snapshot_seconds, owner="serve",
        )  # fmt: skip
        caretaker = Caretaker(store.folder, pool)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # also before the server takes over its signals
        server = uvicorn.Server(uvicorn.Config(make_app(store.folder, caretaker), log_level="warning"))
        Console(stderr=True).print(f"listening on http://{host}:{listener.getsockname()[1]}", highlight=False)
        caretaker.start()
        try:
            server.run(sockets=[listener])
        finally:
            caretaker.end()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OutputError(f"cannot listen on {host}:{port}: {error.strerror}; pass another --port") from error
    return listener
