"""Adapters out of a run while it goes on: of every checkpoint, of the best one so far, and what a run begins from."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from radial.adapters.file import read_adapter
from radial.attention.story.tokens import MEMORY_TOKENS
from radial.errors import RequestError
from radial.models.lora_settings import AdapterSettings, check_adapter_file
from radial.models.weights import read_header
from radial.version import __version__
from radial_finetune.adapter.file import (
    RUN_KEY,
    export_state,
    exported_name,
    is_norm,
    is_scaled,
    plain_tensors,
    write_adapter,
)
from radial_finetune.adapter.names import convert_names
from radial_finetune.training.checkpoints import RunState
from radial_finetune.training.processes import put, whole

_TOKENS = exported_name(MEMORY_TOKENS)


@dataclass(frozen=True)
class Exports:
    """Writes a run's adapters.

    Attributes:
        before: of the norms that are tuned, what they were.
        scale: what the adapter's changes are multiplied by.
        made: what a file says of its run: the learning rate, the cache's digest, the adapter it began from.
    """

    folder: Path
    before: dict[str, Tensor]
    scale: float
    settings: AdapterSettings
    made: dict[str, Any]

    def write(self, path: Path, weights: dict[str, Tensor], step: int, **more: Any) -> Path:
        """Write whole weights as an adapter, with the step they are of."""
        made = {**self.made, "step": step, **more, "version": __version__}
        return write_adapter(
            path, export_state(weights, self.before, self.scale), self.settings.model_dump(), made=made, overwrite=True
        )

    def keep_best(self, state: RunState, loss: float, *, write: bool) -> None:
        """Write the weights to ``best`` where no held-out loss so far was lower. All processes must call this."""
        weights = exported_weights(state)
        if write and loss < best_loss(self.best):
            self.write(self.best, weights, state.step, held_out_loss=loss)

    @property
    def best(self) -> Path:
        return self.folder / "best" / "adapter.safetensors"


def exported_weights(state: RunState) -> dict[str, Tensor]:
    """The weights that a run exports: averaged ones where it averages. All processes must ask."""
    return {name: whole(p.detach()) for name, p in (state.average or state.parameters).items()}


def best_loss(file: Path) -> float:
    """The held-out loss that an adapter's file says; infinity where there is none."""
    loss = read_made(file).get("held_out_loss")
    return float(loss) if isinstance(loss, (int, float)) else float("inf")


def digest_of(file: Path) -> str:
    """Changes with an adapter's file.

    Raises:
        ModelError: there is none.
    """
    check_adapter_file(file)
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=12)).hexdigest()


def begin_from(file: Path, parameters: dict[str, Parameter], before: dict[str, Tensor], scale: float) -> None:
    """Give parameters the values that an adapter has, whose layers and rank must be those of the run.

    Args:
        before: of the norms that are tuned, what they were; files hold what is added to them.
        scale: of the run's adapter, which is multiplied into what files hold.

    Raises:
        ModelError: there is no such file, or it cannot be read.
        RequestError: it has other layers or another rank than the run.
    """
    check_adapter_file(file)
    content = read_adapter(file)
    layers_alone = replace(content, entries=tuple(entry for entry in content.entries if entry.kind != "tokens"))
    given = convert_names(plain_tensors(layers_alone), "diffusers")
    given |= {key: value for key, value in content.tensors().items() if key == _TOKENS}
    wanted = {exported_name(name): name for name in parameters}
    if _TOKENS not in given:  # of another memory: tokens begin as they were drawn
        wanted.pop(_TOKENS, None)
    if given.keys() != wanted.keys():
        layers = [len({_layer_of(key) for key in keys}) for keys in (given, wanted)]
        odd = min(given.keys() ^ wanted.keys())
        raise RequestError(
            f"init_adapter {file} tunes {layers[0]} layers and this run {layers[1]}; only one of them has {odd}: set "
            "adapter, layers and norms as the adapter has them"
        )
    for key, name in wanted.items():
        value, parameter = given[key].float(), parameters[name]
        if value.shape != parameter.shape:
            at = 0 if ".lora_A" in name else -1
            if (".lora_A" in name or ".lora_B" in name) and value.shape[at] != parameter.shape[at]:
                raise RequestError(
                    f"init_adapter {file} has rank {value.shape[at]} and this run rank {parameter.shape[at]}; set "
                    f"rank = {value.shape[at]}"
                )
            if key == _TOKENS and value.shape[1] == parameter.shape[1]:
                raise RequestError(
                    f"init_adapter {file} has {len(value)} memory tokens and this run {len(parameter)}; set "
                    f"memory_tokens = {len(value)}"
                )
            if ".lokr_" in name:
                raise RequestError(
                    f"init_adapter {file} has factors of other sizes: {key} is {_sized(value)} there and "
                    f"{_sized(parameter)} in this run; set rank and lokr_factor as it was tuned"
                )
            raise RequestError(f"init_adapter {file} was made for another model: {key} has another size there")
        if is_scaled(key):
            value = value / scale
        elif is_norm(name):
            value = value + before[name].float().cpu()
        put(value, parameter)


def _layer_of(key: str) -> str:
    return re.split(r"\.(?:lora_|lokr_|diff)", key)[0]


def _sized(tensor: Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape)


def read_made(file: Path) -> dict[str, Any]:
    """What an adapter's file says of the run it came from: step, learning rate, digests; nothing where it does not."""
    try:
        made = json.loads(read_header(file).get("__metadata__", {}).get(RUN_KEY, "{}"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, struct.error):
        return {}
    return made if isinstance(made, dict) else {}
