"""``radial serve`` and ``radial studio``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from radial.errors import RequestError
from radial_app.cli.terminal.options import DataDir, Device, Pack, PerDevice, SnapshotSeconds
from radial_app.worker.overdue import GRACE_SECONDS

Host = Annotated[str, typer.Option(help="Address to listen on; others than this machine's need accounts.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")]
Listen = Annotated[bool, typer.Option("--listen", help="Listen on all addresses; needs accounts.")]
AllowHost = Annotated[list[str] | None, typer.Option(help="A name by which the server is called, repeatable.")]
BehindProxy = Annotated[
    list[str] | None,
    typer.Option(help="Address of a proxy that says who asks, and whether by https; repeatable.", metavar="ADDRESS"),
]
Enhancer = Annotated[
    list[str] | None,
    typer.Option(
        help="A language model, folder or hub id, that visitors may have prompts enhanced by; repeatable.",
        metavar="MODEL",
    ),
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
    pack: Pack = True,
    grace_seconds: Grace = GRACE_SECONDS,
    behind_proxy: BehindProxy = None,
    enhancer: Enhancer = None,
    data_dir: DataDir = None,
) -> None:
    """Keep a worker on each device, and answer the REST interface, /healthz and /metrics."""
    _run(
        "0.0.0.0" if listen else host, port, hosts=allow_host or [], outputs=output, devices=device,
        per_device=jobs_per_device, snapshot_seconds=snapshot_seconds, pack=pack, grace_seconds=grace_seconds,
        proxies=behind_proxy or [], enhancers=enhancer or [], folder=data_dir,
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
    pack: Pack = True,
    grace_seconds: Grace = GRACE_SECONDS,
    behind_proxy: BehindProxy = None,
    enhancer: Enhancer = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    data_dir: DataDir = None,
) -> None:
    """Open the studio: make, queue, watch and keep videos in the browser. Everything `radial serve` does, too."""
    _run(
        "0.0.0.0" if listen else host, port, hosts=allow_host or [], outputs=output, devices=device,
        per_device=jobs_per_device, snapshot_seconds=snapshot_seconds, pack=pack, grace_seconds=grace_seconds,
        proxies=behind_proxy or [], enhancers=enhancer or [], folder=data_dir, with_studio=True, share=share,
        open_browser=browser,
    )  # fmt: skip


def _run(*address: Any, with_studio: bool = False, **options: Any) -> None:
    try:
        from radial_app.server.run import run_server
    except ImportError as error:
        raise RequestError("serve needs more packages: pip install 'radial-video[server]'") from error
    if with_studio:
        from radial_app.studio.mount import open_studio

        options["open_page"] = open_studio
    run_server(*address, **options)
