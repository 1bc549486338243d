"""A server with its workers, from the first connection to the last."""

from __future__ import annotations

import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from rich.console import Console

from radial.errors import OutputError, RequestError, first_line
from radial.models.find import check_language_model
from radial_app.jobs.job import OUTPUT_FOLDER
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Accounts
from radial_app.server.app import Page, make_app
from radial_app.server.limits.connections import Connection, allow_many_files
from radial_app.server.limits.sweep import prepare_uploads
from radial_app.server.service import ServerPaths
from radial_app.worker.overdue import GRACE_SECONDS
from radial_app.worker.pool import WorkerPool, own_devices
from radial_app.worker.supervisor import Supervisor
from radial_app.worker.worker import log_to

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run_server(
    host: str, port: int, *, hosts: list[str], outputs: Path | None, devices: list[str] | None, per_device: int,
    snapshot_seconds: float, folder: Path | None, open_page: Callable[[ServerPaths], Page] | None = None,
    share: bool = False, open_browser: bool = False, grace_seconds: float = GRACE_SECONDS, proxies: Sequence[str] = (),
    enhancers: Sequence[str] = (), pack: bool = True,
) -> None:  # fmt: skip
    """Serve until told to stop.

    Args:
        open_page: makes what is shown at ``/``.
        enhancers: language models, folders or hub ids, that visitors may have prompts enhanced by.
        pack: whether workers render jobs together where that pays.

    Raises:
        RequestError: another server keeps this queue, a package is missing, or others could come in without accounts.
        OutputError: the address cannot be listened on.
    """
    for one in enhancers:
        check_language_model(one)
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
            snapshot_seconds=snapshot_seconds, owner="serve", pack=pack,
        )  # fmt: skip
        supervisor = Supervisor(store.folder, pool, grace_seconds)
        prepare_uploads(store.folder)
        folders = [str(Path(one).absolute()) if Path(one).is_dir() else one for one in enhancers]
        paths = ServerPaths(store.folder, (outputs or OUTPUT_FOLDER).absolute(), tuple(folders))
        link = _open_tunnel(listener.getsockname()[1]) if share else None
        if link is not None:
            hosts = [*hosts, urlsplit(link).hostname or ""]
        app = make_app(paths, supervisor.health, accounts=protected, hosts=[*hosts, host], open_page=open_page)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # also before the server takes over its signals
        Connection.most = allow_many_files()
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=3, timeout_keep_alive=60, http=Connection, ws="none",
            proxy_headers=bool(proxies), forwarded_allow_ips=list(proxies),
        )  # fmt: skip
        server = uvicorn.Server(config)
        app.state.is_ending = lambda: server.should_exit
        stderr = Console(stderr=True)
        stderr.print(f"listening on {address}", highlight=False)
        supervisor.start()
        try:
            if link is not None:
                stderr.print(f"public link {link}", highlight=False)
            if open_browser:
                import webbrowser

                threading.Timer(1.0, webbrowser.open, [address]).start()
            server.run(sockets=[listener])
        finally:
            supervisor.end()


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
