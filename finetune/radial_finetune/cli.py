"""``radial finetune``: prepare a cache of clips, train an adapter on it, look into its file and convert it."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import progress
from rich.console import Console
from rich.table import Table

from radial.errors import RequestError
from radial_finetune.data.clips import Bucket, Cut

app = typer.Typer(name="finetune", help="Tune an adapter, for longer clips or a style.", no_args_is_help=True)
stderr = Console(stderr=True)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")]


_NOTES = 10  # on files, that prepare prints; the report has all
_PAUSE = 30.0  # seconds between two lines of a log at most


class _Pace:
    """When a line is due where no bar is shown, as under nohup: at the first and last step, each tenth part of the way,
    and whenever the last one is half a minute old."""

    def __init__(self, total: int) -> None:
        self._total, self._last, self._part = total, -math.inf, -1

    def is_due(self, done: int) -> bool:
        now, part = time.monotonic(), 10 * done // max(1, self._total)
        if part == self._part and now - self._last < _PAUSE:
            return False
        self._last, self._part = now, part
        return True


@app.command()
def prepare(
    data: Annotated[
        Path, typer.Argument(help="Folder of videos with .txt captions, a table, a dataset, or WebDataset shards.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the cache.")],
    model: Annotated[str, typer.Option(help="A name from `radial models`, a hub id, or a checkpoint folder.")] = "tiny",
    num_frames: Annotated[list[int] | None, typer.Option(help="Frames a clip; repeat it for several lengths.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    bucket: Annotated[
        list[str] | None,
        typer.Option(help="A size of clips, repeatable, in place of the three above.", metavar="FxHxW"),
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, help="Frames a second, by default the model's.")] = None,
    crop: Annotated[Literal["centre", "random"], typer.Option(help="Which part of a larger frame to keep.")] = "centre",
    static_threshold: Annotated[
        float, typer.Option(min=0, help="Change of a pixel in a second, of 255, below which a clip is left out.")
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips that are encoded at a time.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode; one a core by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    inside: Annotated[
        bool, typer.Option("--inside", help="Refuse files that lie outside the folder, where somebody else filled it.")
    ] = False,
) -> None:
    """Cut videos into clips and encode them, once. What is there already is kept."""
    from radial.loading.load import load
    from radial.request import make_request
    from radial_finetune.data.pictures import check_plots
    from radial_finetune.data.prepare import prepare as prepare_cache
    from radial_finetune.data.sources import Source, find_sources

    if bucket and (num_frames or height or width):
        raise RequestError("--bucket says all three sizes; leave out --num-frames, --height and --width")
    check_plots()
    sources = find_sources(data, inside=inside)
    shapes = [parse_bucket(text) for text in bucket or []]
    largest = max(shapes, default=None)
    request = make_request(
        prompt="prepare", model=model, device=device, dtype=dtype, seed=0, long_adapter=False,
        num_frames=largest.num_frames if largest else max(num_frames, default=None) if num_frames else None,
        height=largest.height if largest else height, width=largest.width if largest else width,
    ).resolve()  # fmt: skip
    shapes = shapes or [
        Bucket(n, request.clip_height, request.clip_width) for n in dict.fromkeys(num_frames or [request.clip_frames])
    ]
    loaded = load(request)
    cut = Cut(tuple(shapes), fps or float(loaded.spec.fps), crop, static_threshold=static_threshold)
    with progress.Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("encoding", total=len(sources))
        pace = _Pace(len(sources))

        def tell(done: int, total: int, source: Source) -> None:
            bar.update(task, completed=done, description=f"encoding {source.name}")
            if bar.disable and pace.is_due(done):
                stderr.print(
                    f"file {done + 1} of {total}: {source.name}", highlight=False, markup=False, soft_wrap=True
                )

        report = prepare_cache(sources, out, loaded, cut, batch_size=batch_size, workers=workers, on_file=tell)
    table = Table(show_header=False, box=None)
    table.add_row("files", str(report.files))
    table.add_row("clips kept", str(report.kept))
    for size, count in report.buckets.items():
        table.add_row(f"  of {size}", str(count))
    for reason, count in report.dropped.items():
        table.add_row(f"pieces left out, {reason}", str(count))
    for name in report.corrupt:
        table.add_row("corrupt file", name)
    for note in [note for fate in report.fates for note in fate.notes][:_NOTES]:
        table.add_row("note", note)
    table.add_row("report", f"{out / 'report.png'}, {out / 'sheet.png'}")
    stderr.print(table)
    print(out)


def parse_bucket(text: str) -> Bucket:
    """A size as FRAMESxHEIGHTxWIDTH.

    Raises:
        RequestError: the text is no such size.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise RequestError(f"--bucket takes FRAMESxHEIGHTxWIDTH such as 81x480x832, not {text!r}")
    return Bucket(*(int(part) for part in parts))


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
    pace = _Pace(settings.steps)
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
    output: Annotated[Path, typer.Option(help="File to write.")],
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
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint; it must not exist.")],
    model: Annotated[str, typer.Option(help="A name from `radial models`, a hub id, or a checkpoint folder.")] = "tiny",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Of the weights that are written.")
    ] = "bfloat16",
) -> None:
    """Write a checkpoint with adapters added to its weights."""
    import torch

    from radial.request import parse_lora
    from radial_finetune.merge import merge as merge_into

    print(merge_into(model, [parse_lora(text) for text in files], output, getattr(torch, dtype)))
