"""``radial finetune``: prepare a cache of clips, train an adapter on it, look into its file and convert it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import progress
from rich.console import Console
from rich.table import Table

from radial.errors import ModelError, RequestError

app = typer.Typer(name="finetune", help="Tune an adapter, for longer clips or a style.", no_args_is_help=True)
stderr = Console(stderr=True)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")]


@app.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="Folder of videos with .txt captions, or a metadata.jsonl or .csv.")],
    out: Annotated[Path, typer.Option(help="Folder for the cache.")],
    model: Annotated[str, typer.Option(help="A name from `radial models`, a hub id, or a checkpoint folder.")] = "tiny",
    num_frames: Annotated[int | None, typer.Option(help="Frames a clip.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second, by default the model's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Cut videos into clips and encode them, once. What is there already is kept."""
    from radial.loading import load
    from radial.request import make_request
    from radial_finetune.clips import find_sources
    from radial_finetune.prepare import cut_for
    from radial_finetune.prepare import prepare as prepare_cache

    sources = find_sources(data)
    request = make_request(
        prompt="prepare", model=model, num_frames=num_frames, height=height, width=width, device=device, dtype=dtype,
        seed=0,
    ).resolve()  # fmt: skip
    loaded = load(request)
    cut = cut_for(loaded, request.clip_frames, request.clip_height, request.clip_width, fps)
    with progress.Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("encoding", total=len(sources))
        report = prepare_cache(
            sources, out, loaded, cut, on_file=lambda done, total, source: bar.update(task, completed=done)
        )
    table = Table(show_header=False, box=None)
    table.add_row("files", str(report.files))
    table.add_row("clips kept", str(report.kept))
    for reason, count in report.dropped.items():
        table.add_row(f"clips left out, {reason}", str(count))
    for name in report.corrupt:
        table.add_row("corrupt file", name)
    stderr.print(table)
    print(out)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="TOML file with the settings of the run.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="Another value.", metavar="KEY=VALUE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train an adapter. Ctrl+C saves a checkpoint; --resume goes on from it."""
    from radial_finetune.config import read_config
    from radial_finetune.train import Progress, finetune

    settings = read_config(config, change)
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[told]}"), progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("training", total=settings.steps, told="")

        def tell(step: Progress) -> None:
            told = f"loss {step.loss:.4f}  lr {step.learning_rate:.1e}  {step.seconds:.2f} s"
            bar.update(task, completed=step.step, told=told)
            if step.validation is not None:
                stderr.print(f"step {step.step}: held-out loss {step.validation:.4f}", highlight=False)

        print(finetune(settings, resume=resume, on_step=tell))


@app.command()
def info(file: Annotated[Path, typer.Argument(help="An adapter.", metavar="FILE")]) -> None:
    """Print what an adapter was made for, and its layers, as JSON."""
    from dataclasses import asdict

    from radial.adapter_settings import read_adapter_settings
    from radial.adapters import layer_names, read_lora

    state = read_lora(file)
    settings = read_adapter_settings(file)
    layers = sorted(layer_names(state))
    print(json.dumps({"settings": settings and asdict(settings), "layers": len(layers), "first": layers[:4]}, indent=2))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="An adapter that was trained here.", metavar="FILE")],
    output: Annotated[Path, typer.Option(help="File to write.")],
    names: Annotated[Literal["diffusers", "comfy"], typer.Option(help="How layers are to be named.")] = "comfy",
    overwrite: Overwrite = False,
) -> None:
    """Write an adapter by the names that ComfyUI or diffusers knows."""
    from dataclasses import asdict

    from radial.adapter_settings import read_adapter_settings
    from radial.adapters import read_lora
    from radial.files import check_output
    from radial_finetune.adapter import convert_names, write_adapter

    check_output(output, ".safetensors", overwrite=overwrite)
    settings = read_adapter_settings(file)
    if settings is None:
        raise ModelError(f"{file} says nothing of what it was made for; only adapters trained here are converted")
    if output.absolute() == file.absolute():
        raise RequestError(f"{output} is the file to convert; take another --output")
    print(write_adapter(output, convert_names(read_lora(file), names), asdict(settings), overwrite=overwrite))
