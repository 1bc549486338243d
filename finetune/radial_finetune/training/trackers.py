"""Where a run is logged beside its own file: TensorBoard, Weights & Biases, trackio, through accelerate's trackers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Any

from radial.errors import RequestError
from radial_finetune.training.config import FinetuneConfig


class Trackers:
    """The trackers of a run; TensorBoard where it is installed, unless the configuration names others."""

    def __init__(self, config: FinetuneConfig | None, output: Path) -> None:
        self._trackers: list[Any] = []
        if config is None:
            return
        installed = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
        for name in installed if config.trackers is None else config.trackers:
            if importlib.util.find_spec(name) is None:
                extra = "pip install 'radial-video[train]'" if name == "tensorboard" else f"pip install {name}"
                raise RequestError(f"tracker {name} is not installed: {extra}")
            self._trackers.append(_start(name, output, config))

    def log(self, line: dict[str, Any]) -> None:
        """Numbers of one step."""
        values = {key: value for key, value in line.items() if key != "step"}
        for tracker in self._trackers:
            tracker.log(values, step=line["step"])

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
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
