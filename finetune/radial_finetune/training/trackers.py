"""Where a run is logged: a line a step in its own file, and TensorBoard, Weights & Biases or trackio, through
accelerate's trackers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from radial.errors import RequestError
from radial.files import publish_text
from radial_finetune.training.config import FinetuneConfig

LOG = "log.jsonl"
Line = dict[str, Any]


@contextlib.contextmanager
def run_log(config: FinetuneConfig, output: Path, step: int) -> Iterator[Callable[[Line], None]]:
    """A function that logs the numbers of a step, of a run that goes on from ``step``; to TensorBoard too where it is
    installed, unless the configuration names others."""
    file = output / LOG
    if file.is_file():  # what was done beyond the last checkpoint will be done again
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if step and 0 <= _step_of(line) <= step]
        publish_text(file, "".join(f"{line}\n" for line in kept))

    def write(line: Line) -> None:
        output.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        also(line)

    with _trackers(config, output) as also:
        yield write


def _step_of(line: str) -> int:
    """The step of a line of the log; -1 for one that is torn."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


@contextlib.contextmanager
def _trackers(config: FinetuneConfig, output: Path) -> Iterator[Callable[[Line], None]]:
    installed = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    started = []
    for name in installed if config.trackers is None else config.trackers:
        if importlib.util.find_spec(name) is None:
            extra = "pip install 'radial-video[train]'" if name == "tensorboard" else f"pip install {name}"
            raise RequestError(f"tracker {name} is not installed: {extra}")
        started.append(_start(name, output, config))

    def log(line: Line) -> None:
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
