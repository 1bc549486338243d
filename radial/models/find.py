"""From what a user calls a model to its spec: a name, a hub id, a folder, or a file with its transformer."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import replace
from pathlib import Path

from radial.errors import ModelError, RequestError
from radial.models.checkpoint import read_folder
from radial.models.hub.download import config_folder
from radial.models.single_file import read_single_file
from radial.models.spec import ModelSpec, Task
from radial.models.table import MODELS, nearest, refuse_fun

SINGLE_FILES = (".safetensors", ".gguf")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_HUB_FILE = re.compile(rf"({HUB_ID.pattern})/([\w.-]{{1,96}}\.safetensors)", re.ASCII)

# Pipelines of models whose positions have frequencies for time alone, by a rule.
_STRETCHED = {
    "AllegroPipeline", "EasyAnimatePipeline", "HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo15Pipeline",
    "HunyuanVideoImageToVideoPipeline", "HunyuanVideoPipeline", "Kandinsky5T2VPipeline",
    "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Pipeline", "WanImageToVideoPipeline", "WanPipeline",
    "WanVACEPipeline", "WanVideoToVideoPipeline",
}  # fmt: skip
# Those whose frequencies mix time and place, or are learned.
_INTERPOLATED = {"LTXImageToVideoPipeline", "LTXPipeline", "MochiPipeline"}


def find_model(name: str, *, online: bool = True) -> ModelSpec:
    """The spec of a model given by name, hub id, folder, or file with its transformer.

    Args:
        online: whether the hub may be asked for the configuration of a model that is not here.

    Raises:
        RequestError: the name is none of these.
        ModelError: the folder or the file is not a checkpoint that can be loaded safely, or the hub has none.
    """
    if name in MODELS:
        return MODELS[name]
    for spec in MODELS.values():
        if spec.source == name:
            return spec
    if os.path.isdir(name):  # False for names that no path can be, where Path.is_dir raises
        return read_folder(Path(name))
    if files := transformer_files_in(name):
        if (missing := next((file for file in files if not file.is_file()), None)) is not None:
            raise ModelError(f"there is no file {missing}")
        return read_single_file(name)
    if HUB_ID.fullmatch(name):
        if reason := refuse_fun(name):
            raise ModelError(reason)
        spec = read_folder(config_folder(name, online=online), weights=False)
        return replace(spec, name=name, summary="from the Hugging Face hub", source=name)
    meant = nearest(name[:200]) or "; give one of `radial models`"
    raise RequestError(
        f"unknown model {name[:200]!r}{meant}; a hub id like org/name, a checkpoint folder or a transformer's file is "
        "taken, too"
    )


def check_language_model(name: str) -> None:
    """Make sure that a name is a folder with a language model of transformers, or can be one on the hub.

    Raises:
        RequestError: it is not.
        ModelError: the folder has no weights as safetensors.
    """
    if os.path.isdir(name):
        if not (Path(name) / "config.json").is_file() or not any(Path(name).glob("*.safetensors")):
            raise ModelError(f"{name} is no model of transformers with weights as safetensors")
    elif not HUB_ID.fullmatch(name):
        raise RequestError(f"enhance must be a folder that is there, or a hub id like org/name, not {name[:200]!r}")


def positions_of(spec: ModelSpec) -> tuple[str, ...]:
    """How a model's positions along time can be stretched beyond its native length, besides not at all. One that makes
    longer clips window by window never goes there."""
    if spec.window_frames is not None:
        return ()
    riflex = ("riflex",) if spec.riflex_period is not None else ()
    if riflex or spec.pipelines <= _STRETCHED:
        return (*riflex, "interpolate", "ntk", "yarn")
    return ("interpolate",) if spec.pipelines <= _INTERPOLATED else ()


def check_positions(spec: ModelSpec, kind: str) -> None:
    """Make sure that positions of a kind are known for a model.

    Raises:
        RequestError: they are not.
    """
    if kind in positions_of(spec):
        return
    if spec.window_frames is not None:
        raise RequestError(
            f"positions {kind} would change nothing for {spec.name}, which makes longer clips window by window, each "
            "within the length that it was trained on; leave it out"
        )
    able = ", ".join(other.name for other in MODELS.values() if kind in positions_of(other))
    if kind == "riflex":
        raise RequestError(f"riflex has no constant for {spec.name}; models with one: {able}")
    own = "; ".join(positions_of(spec)) or "none"
    raise RequestError(f"positions {kind} is not known for {spec.name}, whose kinds are: {own}; models with it: {able}")


def hub_file(name: str) -> tuple[str, str] | None:
    """Repository and file of what is named ``org/name/file.safetensors``; None for other names, and for files here."""
    found = None if os.path.exists(name) else _HUB_FILE.fullmatch(name)
    return None if found is None else (found[1], found[2])


def check_packages(spec: ModelSpec) -> None:
    """Raise where a package that a model needs is not installed, before anything is downloaded for it.

    Raises:
        ModelError: it is not; the command that installs it is named.
    """
    missing = [name for name in spec.packages if importlib.util.find_spec(name) is None]
    if any(file.suffix == ".gguf" for file in spec.own_weights.values()) and importlib.util.find_spec("gguf") is None:
        missing.append("gguf")
    if missing:
        raise ModelError(f"{spec.name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def transformer_files_in(name: str) -> list[Path]:
    """The files that a model's name names: one, or two with a comma between; none where it is another kind of name."""
    parts = [name] if os.path.isfile(name) else [part.strip() for part in name.split(",")]
    return [Path(part) for part in parts] if all(Path(part).suffix in SINGLE_FILES for part in parts) else []


def pipeline_of(spec: ModelSpec, task: Task) -> str:
    """The diffusers class of a model's task.

    Raises:
        RequestError: the model has no such task; models that do are named.
    """
    found = spec.pipeline_for(task)
    if found is None:
        able = ", ".join(one.name for one in MODELS.values() if one.pipeline_for(task))
        if task == "image":
            raise RequestError(f"{spec.name} does not start from an image; models that do: {able}")
        if task == "video":
            raise RequestError(f"{spec.name} makes no clip over by a strength; models that do: {able}")
        if task == "control":
            raise RequestError(f"{spec.name} is steered by its words alone; models that are by more: {able}")
        if spec.image_pipeline is not None:
            raise RequestError(f"{spec.name} starts from an image: give --image or --extend")
        options = " and ".join(f"--{name.replace('_', '-')}" for name in spec.needs)
        raise RequestError(f"{spec.name} follows another clip: give {options}")
    return found
