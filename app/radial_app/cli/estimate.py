"""``radial estimate``: what a clip will take of memory, disk and time, before anything is loaded."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from radial.errors import RadialError
from radial.models.checkpoint import checkpoint_folder
from radial.models.find import find_model
from radial.models.hub.download import Download, cached_folder
from radial.models.hub.pieces import model_size
from radial.models.spec import ModelSpec
from radial.request import make_request
from radial.shorthands import spell_out
from radial_app.cli.jobs import clock
from radial_app.cli.terminal.options import (
    BatchedGuidance,
    Cache,
    DataDir,
    Decoder,
    GuidanceEnd,
    GuidanceStart,
    Height,
    ModelName,
    NumFrames,
    NumInferenceSteps,
    PrecisionChoice,
    Preset,
    Seconds,
    Size,
    Width,
    left_open,
    takes_attention,
    told_as_options,
)
from radial_app.jobs.estimates import estimate as estimate_for
from radial_app.jobs.folder import data_folder
from radial_app.jobs.presets import Presets
from radial_app.jobs.store import JobStore


@takes_attention
def estimate(
    context: typer.Context,
    model: ModelName = "tiny",
    height: Height = None,
    width: Width = None,
    size: Size = None,
    num_frames: NumFrames = None,
    seconds: Seconds = None,
    preset: Preset = None,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to follow the prompt.")] = None,
    guidance_start: GuidanceStart = 0.0,
    guidance_end: GuidanceEnd = 1.0,
    cache: Cache = "off",
    decoder: Decoder = "full",
    batched_guidance: BatchedGuidance = False,
    precision: PrecisionChoice = "full",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of a table.")] = False,
    **attention: Any,
) -> None:
    """Say what a clip will take: GPU and host memory for every memory profile, disk and download, time."""
    from radial.loading.devices import find_device
    from radial.loading.needs import PROFILES, fit_profile

    written = {
        "prompt": "estimate", "model": model, "height": height, "width": width, "size": size, "num_frames": num_frames,
        "seconds": seconds, "preset": preset, "num_inference_steps": num_inference_steps,
        "precision": precision, "device": device, "seed": 0, "guidance_scale": guidance_scale,
        "guidance_start": guidance_start, "guidance_end": guidance_end, "cache": cache,
        "decoder": decoder, "batched_guidance": batched_guidance, **attention,
    }  # fmt: skip
    with told_as_options(written):
        written = Presets(data_folder(data_dir)).apply(written, left_open(context))
        request = make_request(**spell_out(written)).resolve()
    spec, place = find_model(request.model), find_device(request.device)
    gpu = place != "cpu"
    planned, problem = _plan_download(spec)
    with JobStore(data_dir) as store:
        found = estimate_for(request, store, gpu=True, files=planned.files if planned else None)
        on_cpu = None if gpu else estimate_for(request, store, files=planned.files if planned else None).needs
    folder = checkpoint_folder(spec) or cached_folder(spec.source)
    told: dict[str, Any] = {
        "model": request.model, "height": request.clip_height, "width": request.clip_width,
        "num_frames": request.clip_frames, "num_inference_steps": request.num_inference_steps,
        "tokens": request.grid(spec).tokens, "attention_computed": found.density, "seconds": found.seconds,
        "seconds_on_h100": found.seconds_on_h100,
        "disk": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder else 0,
        "download": planned.missing if planned else 0 if folder else None,
    }  # fmt: skip
    if problem:
        told["hub"] = problem
    if found.needs is not None:
        told["cpu"] = None if on_cpu is None else on_cpu.cpu
        told["memory"] = {p: {"gpu": found.needs.vram(p), "host": found.needs.ram(p)} for p in PROFILES}
        if gpu:
            import torch

            from radial.loading.memory import free_memory

            told["free"] = free_memory(torch.device(place))
            try:
                told["fits"] = fit_profile(request, spec, found.needs, told["free"], place)
            except RadialError as error:
                told["fits"], told["problem"] = None, str(error)
    if as_json:
        print(json.dumps(told))
    else:
        _show(told)
    if told.get("problem"):
        raise typer.Exit(1)


def _plan_download(spec: ModelSpec) -> tuple[Download | None, str]:
    """What is to be downloaded, where the model is the hub's, or why the hub cannot be asked."""
    if checkpoint_folder(spec) is not None:
        return None, ""
    try:
        return model_size(spec), ""
    except RadialError as error:
        return None, str(error)


def _show(told: dict[str, Any]) -> None:
    out = Console(highlight=False)
    share = told["attention_computed"]
    computed = "" if share is None else f", {share:.0%} of attention computed"
    out.print(f"{told['model']}, {told['width']}x{told['height']}, {told['num_frames']} frames, "
              f"{told['num_inference_steps']} steps: {told['tokens']:,} tokens{computed}")  # fmt: skip
    if "memory" in told:
        table = Table("memory", "on a GPU", "in the host", box=None, pad_edge=False)
        for profile, needs in told["memory"].items():
            mark = "  <- auto takes this" if profile == told.get("fits") else ""
            table.add_row(profile, decimal(needs["gpu"]), f"{decimal(needs['host'])}{mark}")
        out.print(table)
        if told["cpu"] is not None:
            out.print(f"on this machine's CPU: {decimal(told['cpu'])}")
    else:
        out.print("memory: known once the hub can be asked, or the model's files are here")
    if told["download"]:
        out.print(f"download: {decimal(told['download'])}")
    elif told["download"] is None:
        out.print(f"download: unknown; {told['hub']}", soft_wrap=True)
    out.print(f"disk: {decimal(told['disk'])} here" if told["disk"] else "disk: nothing here yet")
    seconds = told["seconds"]
    here = "unknown until a clip like it was made here" if seconds is None else f"about {clock(seconds)}"
    on_h100 = "" if told["seconds_on_h100"] is None else f"; on an H100 about {clock(told['seconds_on_h100'])}"
    out.print(f"time: {here}{on_h100}")
    if told.get("problem"):
        out.print(f"it does not fit: {told['problem']}", soft_wrap=True)
