"""``radial receipt``, ``rerun`` and ``verify``: what a video says of itself, and whether it is true."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from radial.errors import OutputError, RequestError
from radial.request import GenerationRequest, make_request
from radial.video.clip import read_frames, read_receipt
from radial.video.encoding import Encoding, encoding_for
from radial_app.cli.generate import output_place
from radial_app.cli.terminal.options import DataDir
from radial_app.cli.terminal.text import json_text, printable
from radial_app.jobs.job import Job, anchored
from radial_app.jobs.store import JobStore

File = Annotated[Path, typer.Argument(help="A video made by radial, or a folder of frames.", metavar="FILE")]


def receipt(file: File) -> None:
    """Print how a video was made, as JSON."""
    print(json_text(read_receipt(file), indent=2))


def rerun(
    file: File,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, or a folder for it; outputs/ by default.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a video again, as its receipt says."""
    from radial_app.cli.terminal.run_here import render_here

    request, encoding = request_of(file)
    if output is not None and output.suffix and not output.is_dir():
        wanted = encoding_for(output)
        encoding = wanted if wanted.format != encoding.format else encoding
    place = output_place(
        output, encoding.format, encoding.codec, encoding.crf, encoding.metadata, overwrite=False, request=request
    )
    job = Job(id="", request=request, output=place)
    with JobStore(data_dir) as store:
        render_here(store, job)


def verify(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")] = False,
) -> None:
    """Make a video again and compare the frames. Exit code 0: the same, 1: not."""
    from radial.generation.pipeline import generate
    from radial_app.cli.terminal.progress import Progress

    if read_receipt(file).get("finishing"):
        raise RequestError(f"{file} was finished, and its frames are others since: verify the clip it was made of")
    console = Console(stderr=True)
    request, encoding = request_of(file)
    claimed = read_receipt(file)
    if "finished_at_step" in claimed:
        raise RequestError(f"{file} was ended at step {claimed['finished_at_step']} by hand: it cannot be verified")
    with Progress(console) as progress:
        (video,) = generate(request, on_event=progress.on_event)
    for what, then, now in differences(claimed, video.receipt):
        console.print(f"[yellow]note:[/] {what} was {_told(then)}, is {_told(now)}", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        again = video.write(Path(folder) / f"again{encoding.suffix}", encoding=encoding)
        before, after = read_frames(file), read_frames(again)
    if before.shape != after.shape:
        raise OutputError(f"{file} has other frames: {before.shape}, made again {after.shape}")
    error = np.abs(before.astype(np.int16) - after)
    same, noise = not error.any(), float(np.square(error.astype(np.float64)).mean())
    if as_json:
        differ = {what: {"then": then, "now": now} for what, then, now in differences(claimed, video.receipt)}
        psnr = None if same else round(float(10 * np.log10(255**2 / noise)), 2)
        print(json_text({"same": same, "psnr": psnr, "most": int(error.max()), "differences": differ}, indent=2))
        raise typer.Exit(0 if same else 1)
    if same:
        print("the same: every pixel of every frame")
        return
    print(f"not the same: {10 * np.log10(255**2 / noise):.1f} dB PSNR, off by {error.max()} of 255 at most")
    raise typer.Exit(1)


def request_of(file: Path) -> tuple[GenerationRequest, Encoding]:
    """The request and the kind of file that a receipt tells of.

    Raises:
        OutputError: there is no receipt.
        RequestError: it is not one that can be repeated.
    """
    found = read_receipt(file)
    if "story" in found:
        raise RequestError(f"{file} is the film of a story: `radial story` makes it again from its lines")
    fields, encoding = found.get("request"), found.get("encoding") or {}
    if not isinstance(fields, dict) or not isinstance(encoding, dict):
        raise RequestError(f"the receipt of {file} has no request that can be read")
    try:
        kind = Encoding.model_validate(encoding)
    except ValueError as error:
        raise RequestError(f"the receipt of {file} names a kind of file that this version does not write") from error
    return anchored(make_request(**{str(key): value for key, value in fields.items()})).resolve(), kind


def _told(value: object) -> str:
    """A value that a file says, for a terminal, which it must not steer."""
    text = printable(str(value))
    return escape(text if len(text) <= 300 else f"{text[:300]}...")


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What of two receipts could make two clips differ."""
    names = ("radial", "model", "loras", "inputs", "attention", "guidance", "cache", "packed", "device", "dtype",
             "versions")  # fmt: skip
    return [(name, then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)]
