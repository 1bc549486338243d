"""``radial doctor``: what this machine has, what will run on it, and what is in the way."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from radial.errors import RadialError
from radial.files import existing_folder
from radial.loading.memory_check import check_fits
from radial.models.checkpoint import checkpoint_folder
from radial.models.find import check_packages, find_model
from radial.models.hub.download import check_disk, find_local
from radial.models.hub.pieces import model_size
from radial.request import make_request
from radial_app.cli.terminal.options import DataDir
from radial_app.jobs.folder import data_folder

EXTRAS = {
    "server": "fastapi", "studio": "gradio", "train": "datasets", "eight-bit": "torchao", "caption": "torchvision",
    "optimizers": "pytorch_optimizer", "measure": "torchmetrics", "gguf": "gguf", "cluster": "ray",
    "flash": "flash_attn", "upscale": "spandrel",
}  # fmt: skip
_PACKAGES = ("torch", "triton", "diffusers", "transformers", "accelerate", "peft", "av", "safetensors")
_LEAST_DISK = 5e9
PORT = 7860


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    value: str
    verdict: Literal["ok", "note", "problem"] = "ok"


def examine(folder: Path | None = None) -> list[Finding]:
    """Look at the machine: versions, devices, the attention backend of each and why, disks, ports, extras."""
    found = [Finding("Python", platform.python_version()), Finding("system", platform.platform())]
    found += [Finding(name, _version(name)) for name in _PACKAGES]
    found += [*_devices(), *_disks(folder), _port(), *_codecs()]
    missing = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        found.append(Finding("not installed", f"extras {', '.join(missing)}: pip install 'radial-video[NAME]'", "note"))
    return found


def examine_model(name: str) -> list[Finding]:
    """Look at what a model needs before it is fetched: packages, terms, room for its files, memory.

    Raises:
        RequestError: there is no such model.
    """
    spec = find_model(name)
    found = [Finding("model", f"{spec.name}: {spec.summary}")]
    try:
        check_packages(spec)
        found.append(Finding("packages", "all that it needs is installed"))
    except RadialError as error:
        found.append(Finding("packages", str(error), "problem"))
    if spec.gated:
        found.append(Finding("terms", f"accept them on the page of {spec.source}, then `hf auth login`", "note"))
    if checkpoint_folder(spec) or find_local(spec.source, spec.own_components):
        found.append(Finding("files", "here"))
    else:
        try:
            planned = model_size(spec)
            check_disk(planned)
            found.append(Finding("files", f"{planned.missing / 1e9:.1f} GB to download"))
        except RadialError as error:
            found.append(Finding("files", str(error), "note"))
    files = dict.fromkeys(spec.needs, "a")
    try:
        check_fits(make_request(prompt="a", model=name, seed=0, **files).resolve())
        found.append(Finding("memory", "a clip of its own size fits"))
    except RadialError as error:
        found.append(Finding("memory", str(error), "problem"))
    return found


def doctor(
    model: Annotated[str | None, typer.Option(help="Look at what this model needs, before it is fetched.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Say what this machine has, which attention it will use and why, and what is in the way. Exit code 1 if anything
    is."""
    found = examine(data_dir) if model is None else examine_model(model)
    if as_json:
        print(json.dumps([finding.__dict__ for finding in found], indent=2))
    else:
        table = Table(show_header=False, box=None)
        for finding in found:
            mark = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}[finding.verdict]
            table.add_row(mark, finding.what, escape(finding.value))
        Console().print(table)
    if any(finding.verdict == "problem" for finding in found):
        raise typer.Exit(1)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[Finding]:
    import psutil
    import torch

    from radial_kernels.block_sparse import explain_backend

    cpu = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB"
    found = [Finding("CPU", cpu)]
    if not torch.cuda.is_available():
        built = torch.version.cuda or "CPU"
        why = f"torch is built for {built}, and sees no GPU: clips are made on the CPU"
        found.append(Finding("GPU", why, "note"))
    else:
        found.append(Finding("CUDA", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"))
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        dtype = torch.bfloat16 if device != "cpu" else torch.float32
        if device != "cpu":
            properties = torch.cuda.get_device_properties(device)
            free, total = torch.cuda.mem_get_info(device)
            capability = f"compute capability {properties.major}.{properties.minor}"
            memory = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free"
            found.append(Finding(device, f"{properties.name}, {capability}, {memory}"))
        queries = torch.empty(1, 1, 1, 128, device=device, dtype=dtype)
        chosen, why = explain_backend(queries)
        why = why.replace(f", and q is on {device}", "")
        found.append(Finding(f"attention on {device}", f"{chosen}{f': {why}' if why else ''}"))
    return found


def _disks(folder: Path | None) -> list[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    found = []
    for what, place in (("queue", data_folder(folder)), ("outputs", Path("outputs")), ("models", Path(HF_HUB_CACHE))):
        there = existing_folder(place)
        free = shutil.disk_usage(there).free
        writable = os.access(there, os.W_OK | os.X_OK)
        verdict: Literal["ok", "note", "problem"] = "ok" if free >= _LEAST_DISK else "note"
        if not writable:
            verdict = "problem"
        says = f"{place.absolute()}: {free / 1e9:.0f} GB free{'' if writable else ', cannot be written'}"
        found.append(Finding(what, says, verdict))
    return found


def _port() -> Finding:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            return Finding("port", f"{PORT} is taken; pass another --port", "note")
    return Finding("port", f"{PORT} is free")


def _codecs() -> list[Finding]:
    import av.codec

    wanted = {"h264": "libx264", "h265": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}
    missing = [name for name, encoder in wanted.items() if encoder not in av.codec.codecs_available]
    if missing:
        return [Finding("codecs", f"this PyAV has no {', '.join(missing)}", "problem" if "h264" in missing else "note")]
    return [Finding("codecs", ", ".join(wanted))]
