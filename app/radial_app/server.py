"""``radial serve``: keeps workers alive, and tells how the queue stands over HTTP."""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console

from radial.errors import OutputError, RequestError, first_line
from radial_app.options import DataDir, Device, PerDevice, SnapshotSeconds
from radial_app.overdue import GRACE_SECONDS, Overdue
from radial_app.pool import WorkerPool, own_devices
from radial_app.store import JobStore

log = logging.getLogger("radial.server")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TICK = 1.0


class Caretaker(threading.Thread):
    """Keeps workers alive and takes jobs of dead ones back, until told to stop."""

    def __init__(self, folder: Path, pool: WorkerPool, grace_seconds: float = GRACE_SECONDS) -> None:
        super().__init__(daemon=True, name="caretaker")
        self._folder, self._pool = folder, pool
        self._overdue = Overdue(grace_seconds)
        self._stop_it = threading.Event()
        self.problem = ""

    def run(self) -> None:
        """Look after them every second."""
        store: JobStore | None = None
        while not self._stop_it.wait(_TICK):
            try:
                store = store or JobStore(self._folder)
                self._pool.tend()
                store.recover()
                self._overdue.look(store)
                self.problem = ""
            except Exception as error:  # whatever it is: the next look may go well
                if self.problem != str(error):
                    log.error("%s", error)
                self.problem = str(error) or type(error).__name__
        if store is not None:
            store.close()

    def end(self) -> None:
        """Stop looking, and have the workers stop after their step."""
        self._stop_it.set()
        self.join()
        self._pool.stop(30)
        self._pool.kill()
        self._pool.stop_inherited(30)


Host = Annotated[str, typer.Option(help="Address to listen on; others than this machine's need accounts.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")]
Listen = Annotated[bool, typer.Option("--listen", help="Listen on all addresses; needs accounts.")]
AllowHost = Annotated[list[str] | None, typer.Option(help="A name by which the server is called, repeatable.")]
BehindProxy = Annotated[
    list[str] | None,
    typer.Option(help="Address of a proxy that says who asks, and whether by https; repeatable.", metavar="ADDRESS"),
]
Grace = Annotated[
    float, typer.Option(min=1, help="Seconds after which a worker that was asked to stop its job is ended.")
]
Outputs = Annotated[Path | None, typer.Option(help="Folder of the videos; by default outputs/.", metavar="FOLDER")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 7860,
    listen: Listen = False,
    allow_host: AllowHost = None,
    output: Outputs = None,
    device: Device = None,
    jobs_per_device: PerDevice = 1,
    snapshot_seconds: SnapshotSeconds = 30.0,
    grace_seconds: Grace = GRACE_SECONDS,
    behind_proxy: BehindProxy = None,
    data_dir: DataDir = None,
) -> None:
    """Keep a worker on each device, and answer the REST interface, /healthz and /metrics."""
    run_server(
        "0.0.0.0" if listen else host, port, hosts=allow_host or [], outputs=output, devices=device,
        per_device=jobs_per_device, snapshot_seconds=snapshot_seconds, grace_seconds=grace_seconds,
        proxies=behind_proxy or [], folder=data_dir,
    )  # fmt: skip


def studio(
    host: Host = "127.0.0.1",
    port: Port = 7860,
    listen: Listen = False,
    share: Annotated[bool, typer.Option("--share", help="Open a public link through Gradio; needs accounts.")] = False,
    allow_host: AllowHost = None,
    output: Outputs = None,
    device: Device = None,
    jobs_per_device: PerDevice = 1,
    snapshot_seconds: SnapshotSeconds = 30.0,
    grace_seconds: Grace = GRACE_SECONDS,
    behind_proxy: BehindProxy = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    data_dir: DataDir = None,
) -> None:
    """Open the studio: make, queue, watch and keep videos in the browser. Everything `radial serve` does, too."""
    run_server(
        "0.0.0.0" if listen else host, port, hosts=allow_host or [], outputs=output, devices=device,
        per_device=jobs_per_device, snapshot_seconds=snapshot_seconds, grace_seconds=grace_seconds,
        proxies=behind_proxy or [], folder=data_dir, with_studio=True, share=share,
        open_browser=browser,
    )  # fmt: skip


def run_server(
    host: str, port: int, *, hosts: list[str], outputs: Path | None, devices: list[str] | None, per_device: int,
    snapshot_seconds: float, folder: Path | None, with_studio: bool = False, share: bool = False,
    open_browser: bool = False, grace_seconds: float = GRACE_SECONDS, proxies: Sequence[str] = (),
) -> None:  # fmt: skip
    """Serve until told to stop.

    Raises:
        RequestError: another server keeps this queue, a package is missing, or others could come in without accounts.
        OutputError: the address cannot be listened on.
    """
    try:
        import uvicorn

        from radial_app.web.app import make_app
        from radial_app.web.connections import Connection, allow_many_files
        from radial_app.web.desk import Place
        from radial_app.web.sweep import prepare_uploads
    except ImportError as error:
        raise RequestError("serve needs more packages: pip install 'radial-video[server]'") from error
    from radial_app.accounts import Accounts
    from radial_app.outputs import OUTPUT_FOLDER
    from radial_app.worker import log_to

    with JobStore(folder) as store, store.locks.slot("server") as alone:
        if not alone:
            raise RequestError(f"another server keeps the queue in {store.folder}")
        with Accounts(store.folder) as accounts:
            protected = accounts.any()
        if not protected and (share or host not in LOOPBACK):
            how = "a public link" if share else f"listening on {host}"
            raise RequestError(
                f"{how} lets others in, and there are no accounts yet: `radial accounts add NAME` makes one"
            )
        listener = _listen(host, port)  # before any worker is started or asked to stop
        address = f"http://{'localhost' if host in LOOPBACK else host}:{listener.getsockname()[1]}"
        log_to(store.folder / "logs" / "server.jsonl")
        pool = WorkerPool(
            store, devices or own_devices(), per_device=per_device, until_idle=False,
            snapshot_seconds=snapshot_seconds, owner="serve",
        )  # fmt: skip
        caretaker = Caretaker(store.folder, pool, grace_seconds)
        prepare_uploads(store.folder)
        place = Place(store.folder, (outputs or OUTPUT_FOLDER).absolute())
        link = _open_tunnel(listener.getsockname()[1]) if share else None
        if link is not None:
            hosts = [*hosts, urlsplit(link).hostname or ""]
        app = make_app(place, caretaker, accounts=protected, hosts=[*hosts, host], with_studio=with_studio)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # also before the server takes over its signals
        Connection.most = allow_many_files()
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=3, timeout_keep_alive=60, http=Connection, ws="none",
            proxy_headers=bool(proxies), forwarded_allow_ips=list(proxies),
        )  # fmt: skip
        server = uvicorn.Server(config)
        stderr = Console(stderr=True)
        stderr.print(f"listening on {address}", highlight=False)
        caretaker.start()
        try:
            if link is not None:
                stderr.print(f"public link {link}", highlight=False)
            if open_browser:
                import webbrowser

                threading.Timer(1.0, webbrowser.open, [address]).start()
            server.run(sockets=[listener])
        finally:
            caretaker.end()


def _open_tunnel(port: int) -> str:
    """A public address of Gradio's for a port of this machine."""
    try:
        from gradio.networking import setup_tunnel
    except ImportError as error:
        raise RequestError("--share needs more packages: pip install 'radial-video[studio]'") from error
    try:
        return str(setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), None, None))
    except Exception as error:  # the tunnel's program is fetched and started: much can be amiss
        raise OutputError(f"no public link could be opened: {first_line(error)}") from error


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
