"""``radial presets``: settings under names of one's own, which the studio has, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from radial.errors import RequestError
from radial.models.lora_settings import parse_lora
from radial_app.cli.jobs import changes_of
from radial_app.cli.terminal.options import DataDir
from radial_app.cli.terminal.text import json_text
from radial_app.jobs.folder import data_folder
from radial_app.jobs.presets import Presets

app = typer.Typer(name="presets", help="Keep settings by name, for --preset.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="What the settings are called.", metavar="NAME")]


@app.callback()
def _choose_folder(data_dir: DataDir = None) -> None:
    if data_dir is not None:
        os.environ["RADIAL_DATA_DIR"] = str(data_dir)


@app.command("list")
def list_presets(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False) -> None:
    """List your own settings."""
    found = Presets(data_folder()).all()
    if as_json:
        print(json_text(found, indent=2))
        return
    table = Table("name", "settings", box=None)
    for name, fields in found.items():
        table.add_row(escape(name), escape(", ".join(f"{key} {value}" for key, value in fields.items())))
    Console().print(table if found else "none yet: radial presets keep NAME FIELD=VALUE ...", highlight=False)


@app.command()
def keep(
    name: Name,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Values, such as num_inference_steps=30.", metavar="FIELD=VALUE...")
    ] = None,
    like: Annotated[Path | None, typer.Option(help="A video whose settings they are.", metavar="FILE")] = None,
) -> None:
    """Keep settings under a name, in place of what it meant before."""
    from radial_app.cli.receipts import request_of

    fields: dict[str, Any] = {}
    if like is not None:
        fields = request_of(like)[0].model_dump(mode="json", exclude_defaults=True)
    fields |= changes_of(settings)
    if "lora" in fields:
        given = fields.pop("lora")
        fields["loras"] = [parse_lora(str(one)) for one in (given if isinstance(given, list) else [given])]
    # A preset is used from any folder.
    files = [(lora, "path") for lora in fields.get("loras", []) if isinstance(lora, dict)]
    files += [(fields, "policy")] if isinstance(fields.get("policy"), str) else []
    for place, key in files:
        if not str(place.get(key)).startswith("bundled:"):
            place[key] = str(Path(str(place.get(key))).expanduser().absolute())
    if not fields:
        raise RequestError("say which settings: FIELD=VALUE, or --like VIDEO")
    Presets(data_folder()).keep(name, fields)


@app.command()
def forget(name: Name) -> None:
    """Forget settings."""
    Presets(data_folder()).forget(name)
