"""Adapters out of a run while it goes on: of every checkpoint, of the best one so far, and what a run begins from."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from radial.models.lora_settings import AdapterSettings
from radial.models.weights import read_header
from radial.version import __version__
from radial_finetune.training.adapter import RUN_KEY, export_state, write_adapter
from radial_finetune.training.checkpoints import RunState
from radial_finetune.training.processes import whole


@dataclass(frozen=True)
class Exports:
    """Writes a run's adapters.

    Attributes:
        before: of the norms that are tuned, what they were.
        scale: alpha over rank.
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


def read_made(file: Path) -> dict[str, Any]:
    """What an adapter's file says of the run it came from: step, learning rate, digests; nothing where it does not."""
    try:
        made = json.loads(read_header(file).get("__metadata__", {}).get(RUN_KEY, "{}"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, struct.error):
        return {}
    return made if isinstance(made, dict) else {}
