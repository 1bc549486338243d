"""Where a run is logged beside its own file: TensorBoard, Weights & Biases, trackio, through accelerate's trackers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from radial.errors import RequestError
from radial_finetune.training.config import FinetuneConfig


@contextlib.contextmanager
def trackers(config: FinetuneConfig, output: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that logs the numbers of a step; to TensorBoard where it is installed, unless the configuration names
    others."""
    installed = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    started = []
    for name in installed if config.trackers is None else config.trackers:
        if importlib.util.find_spec(name) is None:
            extra = "pip install 'radial-video[train]'" if name == "tensorboard" else f"pip install {name}"
            raise RequestError(f"tracker {name} is not installed: {extra}")
        started.append(_start(name, output, config))

    def log(line: dict[str, Any]) -> None:
        for tracker in started:
            tracker.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])

    try:
        yield log
    finally:
        for tracker in started:
            tracker.finish()


def _start(name: str, output: Path, config: FinetuneConfig) -> Any:
    from accelerate import PartialState, tracking

    PartialState(cpu=config.device == "cpu")  # accelerate's logging asks it which process this is
    kinds = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "trackio": "TrackioTracker"}
    kind = getattr(tracking, kinds[name])
    tracker = kind("radial", logging_dir=str(output)) if name == "tensorboard" else kind("radial")
    tracker.start()
    tracker.store_init_configuration(config.model_dump(mode="json") if name != "tensorboard" else {"seed": config.seed})
    return tracker
