"""``radial download``: a model from the hub onto this machine, before it is needed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich import progress
from rich.console import Console
from rich.filesize import decimal

from radial.files import publish_text
from radial.models.checkpoint import checkpoint_folder
from radial.models.find import find_model
from radial.models.hub.download import check_disk
from radial.models.hub.pieces import download_model, model_size


def download(
    models: Annotated[list[str], typer.Argument(help="Names from `radial models`, or hub ids.", metavar="MODEL...")],
    tell: Annotated[
        Path | None, typer.Option(help="A file that is kept up to date with the bytes.", hidden=True)
    ] = None,
) -> None:
    """Download models. What is here already is not fetched again; cut off, it goes on where it was."""
    stderr = Console(stderr=True)
    found = [find_model(name) for name in dict.fromkeys(models)]
    planned = {
        spec.name: model_size(spec) for spec in found if checkpoint_folder(spec) is None
    }  # all of them, before anything is fetched
    for spec in found:
        if spec.name not in planned:
            print(checkpoint_folder(spec))
            continue
        plan = planned[spec.name]
        check_disk(plan)
        here = f", {decimal(plan.present)} are here" if plan.present else ""
        stderr.print(f"{spec.name}: {decimal(plan.missing)} to download{here}", highlight=False)
        columns = (
            progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
            progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
        )  # fmt: skip
        told = 0.0
        with progress.Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
            task = bar.add_task(spec.name, total=plan.total, completed=plan.present)

            def show(done: int, total: int) -> None:
                nonlocal told
                bar.update(task, completed=done)  # noqa: B023  called within this turn
                if tell is not None and (done == total or time.monotonic() - told > 0.5):
                    told = time.monotonic()
                    publish_text(tell, json.dumps({"done": done, "total": total}))

            folder = download_model(spec, show, plan)
        print(folder)
