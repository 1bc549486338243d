"""``radial lora``: what an adapter's file holds, and what becomes of it in a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def lora(
    file: Annotated[Path, typer.Argument(help="An adapter (safetensors).", metavar="FILE")],
    model: Annotated[
        str | None, typer.Option(help="Account for this model; else for every named one that it acts on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every key that is left out.")] = False,
) -> None:
    """Say what an adapter's file holds, which of its layers act in a model, and why others do not."""
    from radial.adapters.file import read_adapter
    from radial.adapters.report import report_on
    from radial.models.lora_settings import adapter_file, check_adapter_file

    path = adapter_file(str(file))
    check_adapter_file(path)
    report = report_on(read_adapter(path), model)
    if as_json:
        models = {
            name: {"acting": len(account.applied), "left_out": dict(account.left_out)}
            for name, account in report.accounts.items()
        }
        print(json.dumps({"file": path.name, **report.facts, "models": models}, indent=2))
        return
    table = Table(show_header=False, box=None)
    for what, value in {"file": path.name, **report.facts}.items():
        table.add_row(what, escape(value))
    if not report.accounts:
        table.add_row("models", "none with a name has its layers; --model NAME says why not")
    alike: dict[str, list[str]] = {}
    for name, account in report.accounts.items():
        left_out = account.note()
        told = "all of it acts" if left_out is None else left_out.partition(": ")[2]
        alike.setdefault(told, []).append(name)
    for told, names in alike.items():
        table.add_row("in", f"{', '.join(names)}:\n[bold]{escape(told)}[/]")
    Console().print(table)
