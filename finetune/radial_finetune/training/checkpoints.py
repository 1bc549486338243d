"""Checkpoints of a run: written whole or not at all, the last few kept, no pickle.

A folder ``step-000200`` holds the weights, their average, the optimizer's moments and what run it is of; and the same
as an adapter to use. Random numbers follow from the seed and the step, so there is no more to keep.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from radial.errors import ModelError, OutputError, RequestError
from radial.files import existing_folder, publish, sync
from radial_finetune.data.cache import save_tensors
from radial_finetune.training.config import make_config
from radial_finetune.training.optimizers import moments_of, numbers_of, put_back
from radial_finetune.training.processes import put, whole

# What can change when a run goes on: where things are, which digests tell apart, what no step depends on, and what its
# user may want otherwise from here on.
_FREE = {
    "steps", "learning_rate", "model", "data", "output", "checkpoint_every", "keep_checkpoints", "validate_every",
    "sample_every", "sample_prompts", "sample_frames", "sample_steps", "trackers", "device", "max_bad_steps", "trigger",
}  # fmt: skip
_DEFAULTS = make_config(data="", output="").model_dump(mode="json")
_NAME = re.compile(r"step-(\d{6,})")


@dataclass
class RunState:
    """What training changes: the adapter's parameters by name, their average, the optimizer, and the step reached."""

    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    step: int = 0
    config: dict[str, Any] | None = None


def save_checkpoint(
    folder: Path, state: RunState, keep: int, *, write: bool = True,
    export: Callable[[Path, dict[str, Tensor], int], object] = lambda path, weights, step: None,
) -> Path:  # fmt: skip
    """Write the state under a temporary name, rename it, then delete all but the last ``keep``.

    ``weights``, ``average`` and ``moments`` are what a run goes on from; ``adapter`` is what generation takes, which
    ``export`` writes of the averaged weights, or of the step's own where there is no average.

    Where weights are spread over processes, all must call this, and one of them ``write``.

    Raises:
        OutputError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    target = folder / f"step-{state.step:06d}"
    tensors: dict[str, dict[str, Tensor]] = {
        name: {key: whole(x.detach()) for key, x in group.items()}
        for name, group in (("weights", state.parameters), ("average", state.average))
    } | {"moments": moments_of(state.optimizer, state.parameters)}
    numbers = numbers_of(state.optimizer, state.parameters)
    if not write:
        return target
    needed = sum(x.nbytes for group in tensors.values() for x in group.values())
    needed += sum(x.nbytes for x in tensors["weights"].values())  # the export
    if (free := shutil.disk_usage(existing_folder(folder)).free) < needed + (64 << 20):
        raise OutputError(f"a checkpoint needs {needed / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB free")
    for cut_off in folder.glob(".step-*.partial"):  # by a kill while it was written
        shutil.rmtree(cut_off, ignore_errors=True)

    def fill(part: Path) -> None:
        part.mkdir()
        for name, group in tensors.items():
            save_tensors({key: x.detach().cpu().contiguous() for key, x in group.items()}, part / f"{name}.safetensors")
        export(part / "adapter.safetensors", tensors["average"] or tensors["weights"], state.step)
        run = {"step": state.step, "config": state.config, "numbers": numbers}
        (part / "run.json").write_text(json.dumps(run, indent=1))
        sync(part)  # a checkpoint of this step that is there goes once the new one is on the disk
        shutil.rmtree(target, ignore_errors=True)

    publish(target, fill, overwrite=False)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the oldest first. Those that were cut off while written do not count."""
    found = [p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and (p / "run.json").is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def load_last_checkpoint(folder: Path, state: RunState) -> dict[str, Any] | None:
    """Put the newest whole checkpoint's values into the state: the settings it was made with, None where there is none.

    Raises:
        RequestError: it is of another run: settings that decide the outcome differ, and are named.
        ModelError: there are checkpoints, and none can be read.
    """
    found = list_checkpoints(folder)
    for checkpoint in reversed(found):
        try:
            return load_checkpoint(checkpoint, state)
        except (OSError, SafetensorError, json.JSONDecodeError, KeyError):
            continue  # torn by a disk that failed: the one before it may be whole
    if found:
        raise ModelError(f"none of the checkpoints in {folder} can be read, such as {found[-1].name}")
    return None


def load_checkpoint(checkpoint: Path, state: RunState) -> dict[str, Any]:
    """Put a checkpoint's values into the state: the settings it was made with.

    Raises:
        RequestError: it is of another run: settings that decide the outcome differ, and are named.
        OSError, SafetensorError, ValueError, KeyError: it cannot be read.
    """
    from safetensors.torch import load_file

    run = json.loads((checkpoint / "run.json").read_text())
    new, old = state.config or {}, run["config"] or {}
    before = _DEFAULTS | old  # settings that there were not yet were as they are by default
    changed = sorted(key for key in {*new, *before} - _FREE if new.get(key) != before.get(key, new.get(key)))
    if changed:
        told = ", ".join(f"{key} was {before.get(key)!r} and is {new.get(key)!r}" for key in changed[:3])
        raise RequestError(f"{checkpoint} is of another run: {told}; take another output, or the settings it had")
    # In older checkpoints the weights have the name that the export has now.
    first = "weights" if (checkpoint / "weights.safetensors").is_file() else "adapter"
    weights, average, moments = (load_file(checkpoint / f"{n}.safetensors") for n in (first, "average", "moments"))
    if set(weights) != set(state.parameters):
        raise RequestError(f"{checkpoint} holds other layers than this run tunes")
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            put(weights[name], parameter)
        for name, value in state.average.items():
            put(average[name], value)
    put_back(state.optimizer, state.parameters, moments, run.get("numbers", {}))
    state.step = run["step"]
    return dict(old)
