"""``radial finetune``: caption clips, prepare a cache of them, train an adapter, look into its file, convert it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import progress

from radial.errors import RequestError
from radial_finetune.data.cli import Pace, caption, prepare, stderr

app = typer.Typer(name="finetune", help="Tune an adapter, for longer clips or a style.", no_args_is_help=True)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")]

app.command()(caption)
app.command()(prepare)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="TOML file with the settings of the run.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="Another value.", metavar="KEY=VALUE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train an adapter. Ctrl+C saves a checkpoint; --resume goes on from it."""
    from radial.attention.context_parallel import end_process_groups
    from radial_finetune.training.config import read_config
    from radial_finetune.training.train import Progress, finetune

    settings = read_config(config, change)
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[told]}"), progress.TimeRemainingColumn(),
    )  # fmt: skip
    first = os.environ.get("RANK", "0") == "0"
    shown = stderr.is_terminal and first
    pace = Pace(settings.steps)
    with progress.Progress(*columns, console=stderr, transient=True, disable=not shown) as bar:
        task = bar.add_task("training", total=settings.steps, told="")

        def tell(step: Progress) -> None:
            memory = f"  {step.memory / 1e9:.1f} GB" if step.memory else ""
            told = f"loss {step.loss or 0:.4f}  lr {step.learning_rate:.1e}  {step.seconds:.2f} s{memory}"
            if step.step:
                bar.update(task, completed=step.step, told=told)
            if step.step and first and not shown and pace.is_due(step.step):
                stderr.print(f"step {step.step} of {step.steps}: {told}", highlight=False, soft_wrap=True)
            if (held_out := step.validation) is not None and first:
                beyond = "" if held_out.beyond is None else f", {held_out.beyond:.4f} beyond the native length"
                stderr.print(f"step {step.step}: held-out loss {held_out.all:.4f}{beyond}", highlight=False)

        note = (lambda text: stderr.print(text, highlight=False)) if first else None
        print(finetune(settings, resume=resume, on_step=tell, on_note=note or (lambda text: None)))
    end_process_groups()


@app.command()
def estimate(
    config: Annotated[Path, typer.Argument(help="TOML file with the settings of the run.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="Another value.", metavar="KEY=VALUE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")] = False,
) -> None:
    """Say what a run will need: time, memory and disk, before anything is loaded."""
    from radial_finetune.training.config import read_config
    from radial_finetune.training.preflight import forecast

    settings = read_config(config, change)
    needed = forecast(settings)
    if as_json:
        print(json.dumps(asdict(needed) | {"steps": settings.steps}))
    else:
        print(f"{needed}, {settings.steps * needed.seconds / 60:.3g} min in all")


@app.command()
def info(file: Annotated[Path, typer.Argument(help="An adapter.", metavar="FILE")]) -> None:
    """Print what an adapter was made for, of which run it is, and its layers, as JSON."""
    from radial.adapters.file import read_adapter
    from radial.models.lora_settings import check_adapter_file, read_adapter_settings
    from radial_finetune.training.exports import read_made

    check_adapter_file(file)
    settings = read_adapter_settings(file)
    layers = sorted({entry.layer for entry in read_adapter(file).entries})
    told = {
        "settings": settings and settings.model_dump(), "run": read_made(file), "layers": len(layers),
        "first": layers[:4],
    }  # fmt: skip
    print(json.dumps(told, indent=2))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="An adapter, of any trainer.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    names: Annotated[Literal["diffusers", "comfy"], typer.Option(help="How layers are to be named.")] = "comfy",
    overwrite: Overwrite = False,
) -> None:
    """Write an adapter by the names that ComfyUI or diffusers knows."""
    from radial.adapters.file import read_adapter
    from radial.files import check_output
    from radial.models.lora_settings import check_adapter_file, read_adapter_settings
    from radial_finetune.adapter.file import plain_tensors, write_adapter
    from radial_finetune.adapter.names import convert_names
    from radial_finetune.training.exports import read_made

    check_output(output, ".safetensors", overwrite=overwrite)
    check_adapter_file(file)
    if output.absolute() == file.absolute():
        raise RequestError(f"{output} is the file to convert; take another --output")
    settings = read_adapter_settings(file)
    named = convert_names(plain_tensors(read_adapter(file)), names)
    print(
        write_adapter(
            output, named, settings.model_dump() if settings else None, made=read_made(file), overwrite=overwrite
        )
    )


@app.command()
def merge(
    files: Annotated[list[str], typer.Argument(help="Adapters.", metavar="FILE[:WEIGHT]...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint; it must not exist.")],
    model: Annotated[str, typer.Option(help="A name from `radial models`, a hub id, or a checkpoint folder.")] = "tiny",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Of the weights that are written.")
    ] = "bfloat16",
) -> None:
    """Write a checkpoint with adapters added to its weights."""
    import torch

    from radial.models.lora_settings import parse_lora
    from radial_finetune.merge import merge as merge_into

    print(merge_into(model, [parse_lora(text) for text in files], output, getattr(torch, dtype)))
