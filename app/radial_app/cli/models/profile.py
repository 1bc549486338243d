"""``radial profile``: what each layer's attention contributes at each step of a model, for --policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import progress
from rich.console import Console

from radial.errors import RequestError
from radial.files import decode_text
from radial.models.lora_settings import parse_lora
from radial.request import make_request
from radial.shorthands import spell_out
from radial_app.cli.terminal.options import (
    Height,
    ModelName,
    NumFrames,
    NumInferenceSteps,
    Overwrite,
    PrecisionChoice,
    Seconds,
    Size,
    Width,
    told_as_options,
)

_MAX_PROMPTS = 1000


def profile(
    prompts: Annotated[Path, typer.Option(help="A file of prompts, one a line.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .safetensors.")],
    model: ModelName = "tiny",
    height: Height = None,
    width: Width = None,
    size: Size = None,
    num_frames: NumFrames = None,
    seconds: Seconds = None,
    num_inference_steps: NumInferenceSteps = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="Adapter, repeatable, as in generate.", metavar="FILE[:WEIGHT]")
    ] = None,
    density: Annotated[
        list[float] | None,
        typer.Option(help="A density of adaptive attention to measure, repeatable; 0.15, 0.3 and 0.5 by default."),
    ] = None,
    parts: Annotated[
        int | None, typer.Option(min=1, help="Parts of a run, each measured at its middle step; 5 by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    precision: PrecisionChoice = "full",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="The numbers it computes with.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Measure what each layer's attention contributes at each step, and write a file for --policy.

    Stopped, it goes on where it was: what is measured is kept beside the output until all is.

    Example: radial profile --model wan2.1-14b --prompts few.txt -o wan.policy.safetensors
    """
    from radial.profiling.profile import DENSITIES, PARTS
    from radial.profiling.profile import profile as measure

    lines = _read(prompts)
    written = {
        "prompt": lines[0], "model": model, "height": height, "width": width, "size": size, "num_frames": num_frames,
        "seconds": seconds, "num_inference_steps": num_inference_steps, "seed": seed, "precision": precision,
        "device": device, "dtype": dtype,
    }  # fmt: skip
    with told_as_options(written):
        loras = {"loras": [parse_lora(text) for text in lora]} if lora else {}
        request = make_request(**spell_out(written | loras))
    stderr = Console(stderr=True)
    columns = (
        progress.TextColumn("measuring"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("", total=None)
        last = -1

        def show(done: int, total: int) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total)
            if not stderr.is_terminal and 10 * done // total != last:
                last = 10 * done // total
                stderr.print(f"{done} of {total} measured", highlight=False)

        measure(
            request, lines, output, densities=density or DENSITIES, parts=parts or PARTS, overwrite=overwrite,
            on_progress=show,
        )  # fmt: skip
    print(output)


def _read(path: Path) -> list[str]:
    """The prompts of a file, one a line; empty lines and those that begin with # are none."""
    try:
        lines = [line.strip() for line in decode_text(path.read_bytes()).splitlines()]
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{path} {error}") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(found) <= _MAX_PROMPTS:
        raise RequestError(f"{path} must hold 1 to {_MAX_PROMPTS} prompts, not {len(found)}")
    return found
