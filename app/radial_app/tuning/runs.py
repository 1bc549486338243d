"""Fine-tuning runs of a server: prepare a dataset's clips, train an adapter on them, watch, stop, go on.

A run is a folder in ``tuning``: the cache of its clips, the trainer's own folder, and the task that is at work on it.
It is told to ``radial finetune``, and read back from the files that it writes.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from radial.errors import RequestError, first_line
from radial.files import publish_text
from radial_app.tuning.datasets import MEDIA_SUFFIXES, NAME, dataset_path
from radial_app.tuning.settings import Preparation, Training, as_toml
from radial_app.tuning.tasks import Task, read_json, run_command

State = Literal["preparing", "prepared", "training", "stopping", "stopped", "failed", "done"]
PICTURES = ("report.png", "sheet.png")
_POINTS = 400  # of a loss curve
_SAMPLE = re.compile(r"(\d{6,})-(\d{2,})-(\d+)\.mp4")


class Sample(BaseModel):
    """A clip that a run made on its way."""

    file: str
    step: int
    prompt: str
    num_frames: int


class TuningRun(BaseModel):
    """A run as it stands.

    Attributes:
        prepared: clips encoded so far and files looked at, or, once all are, what became of the dataset.
        losses, held_out: points (step, loss) to plot.
        eta: seconds left, where they can be told.
        adapter: whether its adapter is there.
    """

    name: str
    state: State
    preparation: Preparation
    training: Training | None
    prepared: dict[str, Any]
    pictures: list[str]
    step: int
    steps: int
    eta: float | None
    loss: float | None
    losses: list[tuple[int, float]]
    held_out: list[tuple[int, float]]
    samples: list[Sample]
    adapter: bool
    problem: str
    log: list[str]


class Forecast(BaseModel):
    """What training takes: seconds a step at the most, bytes on the device and on disk."""

    steps: int
    seconds: float
    device: float
    disk: float


class Tuning:
    """The runs of a data folder."""

    def __init__(self, folder: Path) -> None:
        self._data, self._folder = folder, folder / "tuning"

    def prepare(self, preparation: Preparation, model: str) -> TuningRun:
        """Begin a run: encode its clips with ``model``, a name or path; again for one that stopped or failed there.

        Raises:
            RequestError: there is no such dataset, another run is at work, or the name is taken.
        """
        dataset = dataset_path(self._data, preparation.dataset)
        folder = self._folder / preparation.name
        known = self._preparation(folder) if folder.exists() else None
        if known is not None and known != preparation:
            raise RequestError(f"there is a run {preparation.name} of other clips: take another name")
        if (folder / "run").exists():
            raise RequestError(f"run {preparation.name} has trained already: take another name")
        self._check_alone()
        arguments = ["finetune", "prepare", str(dataset), "--inside", "--out", str(folder / "cache"), "--model", model]
        for frames in preparation.num_frames:
            arguments += ["--num-frames", str(frames)]
        for option in ("height", "width"):
            if (pixels := getattr(preparation, option)) is not None:
                arguments += [f"--{option}", str(pixels)]
        for picture in (*PICTURES, "report.json"):
            (folder / "cache" / picture).unlink(missing_ok=True)
        publish_text(folder / "run.json", json.dumps({"preparation": preparation.model_dump(mode="json")}))
        files = sum(path.suffix.lower() in MEDIA_SUFFIXES for path in dataset.rglob("*"))
        Task(folder).start(arguments, phase="prepare", model=model, files=files)
        return self.get(preparation.name)

    def train(self, name: str, training: Training) -> TuningRun:
        """Train a run, or go on from its last checkpoint.

        Raises:
            RequestError: its clips are not prepared, another run is at work, or a setting cannot be read.
        """
        folder = self._path(name)
        preparation = self._preparation(folder)
        if not (folder / "cache" / "report.json").is_file():
            raise RequestError(f"the clips of run {name} are not prepared yet")
        self._check_alone()
        values = training.values()
        # The model that the clips were prepared with, wherever it lies.
        told = Task(folder).told
        values |= {"data": str(folder / "cache"), "output": str(folder / "run"), "model": told["model"]}
        (folder / "run" / "adapter.safetensors").unlink(missing_ok=True)
        publish_text(folder / "run.toml", "".join(f"{key} = {as_toml(value)}\n" for key, value in values.items()))
        run = {"preparation": preparation.model_dump(mode="json"), "training": training.model_dump(mode="json")}
        publish_text(folder / "run.json", json.dumps(run))
        resume = ["--resume"] if any((folder / "run").glob("step-*")) else []
        arguments = ["finetune", "run", str(folder / "run.toml"), *resume]
        Task(folder).start(arguments, phase="train", model=told["model"])
        return self.get(name)

    def forecast(self, name: str, training: Training) -> Forecast:
        """What training a run so would take.

        Raises:
            RequestError: its clips are not prepared, or a setting breaks a rule.
        """
        folder = self._path(name)
        if not (folder / "cache" / "report.json").is_file():
            raise RequestError(f"the clips of run {name} are not prepared yet")
        values = training.values() | {
            "data": str(folder / "cache"), "output": str(folder / "run"), "model": Task(folder).told["model"],
        }  # fmt: skip
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write("".join(f"{key} = {as_toml(value)}\n" for key, value in values.items()))
            file.flush()
            told = run_command(["finetune", "estimate", file.name, "--json"])
        needed = json.loads(told)
        return Forecast(**{key: needed[key] for key in ("seconds", "device", "disk")}, steps=training.steps)

    def stop(self, name: str) -> TuningRun:
        """Have a run stop after its step; it can go on later.

        Raises:
            RequestError: it is not at work.
        """
        if not Task(self._path(name)).stop():
            raise RequestError(f"run {name} is not at work")
        return self.get(name)

    def remove(self, name: str) -> None:
        """Delete a run and all that it made.

        Raises:
            RequestError: it is at work.
        """
        folder = self._path(name)
        if Task(folder).living:
            raise RequestError(f"run {name} is at work: stop it first")
        shutil.rmtree(folder, ignore_errors=True)

    def runs(self) -> list[TuningRun]:
        """All runs, the latest first."""
        folders = [path.parent for path in self._folder.glob("*/run.json") if NAME.fullmatch(path.parent.name)]
        folders.sort(key=lambda path: -_started(path))
        found = []
        for folder in folders:
            try:
                found.append(self.get(folder.name))
            except RequestError as error:  # its files cannot be read, which hides no other
                found.append(_broken_run(folder.name, str(error)))
        return found

    def at_work(self) -> str | None:
        """The run that is at work, if any is."""
        folders = (path.parent for path in self._folder.glob("*/task.lock"))
        return next((folder.name for folder in folders if Task(folder).living), None)

    def get(self, name: str) -> TuningRun:
        """A run as it stands.

        Raises:
            RequestError: there is none of this name.
        """
        folder = self._path(name)
        try:
            return self._look(name, folder)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"the files of run {name} cannot be read: {first_line(error)[:200]}") from error

    def _look(self, name: str, folder: Path) -> TuningRun:
        task, written = Task(folder), read_json(folder / "run.json")
        state = _state(folder, task)
        training = Training.model_validate(written["training"]) if "training" in written else None
        log = _read_log(folder / "run" / "log.jsonl")
        lines = [line for line in log if "loss" in line]  # before the first step only held-out clips were looked at
        step, steps = lines[-1]["step"] if lines else 0, training.steps if training else 0
        pace = statistics.median(line.get("seconds", 0.0) for line in lines[-20:]) if lines else None
        return TuningRun(
            name=name, state=state, preparation=Preparation.model_validate(written["preparation"]), training=training,
            prepared=_prepared(folder / "cache", task.told),
            pictures=[picture for picture in PICTURES if (folder / "cache" / picture).is_file()], step=step,
            steps=steps, eta=pace * (steps - step) if pace is not None and state == "training" else None,
            loss=_mean_loss(lines[-20:]), losses=_curve(lines),
            held_out=[(line["step"], line["validation"]) for line in log if "validation" in line],
            samples=_samples(folder / "run" / "samples", training), adapter=_adapter(folder).is_file(),
            problem=task.last_words() if state == "failed" else "", log=task.log()[-40:],
        )  # fmt: skip

    def file(self, name: str, file: str) -> Path:
        """A picture of a run's clips, or a sample.

        Raises:
            RequestError: there is none of this name.
        """
        folder = self._path(name)
        if file in PICTURES:
            path = folder / "cache" / file
        elif _SAMPLE.fullmatch(file):
            path = folder / "run" / "samples" / file
        else:
            raise RequestError(f"run {name} has no file {file[:100]!r}")
        if not path.is_file():
            raise RequestError(f"run {name} has no file {file}")
        return path

    def adapter(self, name: str) -> Path:
        """The adapter that a run made.

        Raises:
            RequestError: it has made none yet.
        """
        path = _adapter(self._path(name))
        if not path.is_file():
            raise RequestError(f"run {name} has made no adapter yet")
        return path

    def _path(self, name: str) -> Path:
        folder = self._folder / name
        if not NAME.fullmatch(name) or not (folder / "run.json").is_file():
            raise RequestError(f"there is no run {name[:100]!r}")
        return folder

    def _preparation(self, folder: Path) -> Preparation:
        try:
            return Preparation.model_validate(read_json(folder / "run.json")["preparation"])
        except (ValueError, KeyError) as error:
            raise RequestError(f"the files of run {folder.name} cannot be read: delete it") from error

    def _check_alone(self) -> None:
        if (other := self.at_work()) is not None:
            raise RequestError(f"run {other} is at work: one at a time")


def _started(folder: Path) -> float:
    told = Task(folder).told.get("started", 0.0)
    return float(told) if isinstance(told, (int, float)) else 0.0


def _broken_run(name: str, problem: str) -> TuningRun:
    """A run whose files cannot be read; it can be deleted."""
    unknown = Preparation(name=name, dataset="unknown", model="unknown", num_frames=(1,))
    return TuningRun(name=name, state="failed", preparation=unknown, training=None, prepared={}, pictures=[], step=0,
                     steps=0, eta=None, loss=None, losses=[], held_out=[], samples=[], adapter=False, problem=problem,
                     log=[])  # fmt: skip


def _state(folder: Path, task: Task) -> State:
    told = task.told
    trains, stopping = told.get("phase") == "train", told.get("stopping", False)
    if task.living:
        return "stopping" if stopping else "training" if trains else "preparing"
    # The task's result is the last thing that it writes.
    result = _adapter(folder) if trains else folder / "cache" / "report.json"
    if result.is_file():
        return "done" if trains else "prepared"
    return "stopped" if stopping else "failed"


def _adapter(folder: Path) -> Path:
    return folder / "run" / "adapter.safetensors"


def _prepared(cache: Path, told: dict[str, Any]) -> dict[str, Any]:
    if report := read_json(cache / "report.json"):
        return report
    done = 0
    with contextlib.suppress(OSError), (cache / "sources.jsonl").open("rb") as lines:
        done = sum(1 for _ in lines)
    return {"files": told.get("files", 0), "done": done}


def _read_log(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # the last one may be torn
                lines.append(json.loads(text))
    return lines


def _mean_loss(lines: list[dict[str, Any]]) -> float | None:
    return sum(line["loss"] for line in lines) / len(lines) if lines else None


def _curve(lines: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """The loss over time, averaged so that it takes few points: single steps say little, noise levels differ."""
    width = max(1, -(-len(lines) // _POINTS))
    parts = (lines[start : start + width] for start in range(0, len(lines), width))
    return [(part[-1]["step"], round(_mean_loss(part) or 0.0, 6)) for part in parts]


def _samples(folder: Path, training: Training | None) -> list[Sample]:
    prompts = training.sample_prompts if training else ()
    found = []
    for path in sorted(folder.glob("*.mp4")):
        if (match := _SAMPLE.fullmatch(path.name)) is not None:
            step, number, frames = map(int, match.groups())
            prompt = prompts[number] if number < len(prompts) else ""
            found.append(Sample(file=path.name, step=step, prompt=prompt, num_frames=frames))
    return found
