"""The command line as people expect it: quick, plain for programs, and stopped without a word of error."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from safetensors import safe_open

from radial.field_words import WORDS, sentence
from radial.models.table import MODELS
from radial.request import GenerationRequest, make_request
from radial.version import __version__
from radial_app.cli import main as cli
from radial_app.cli.generate import generate as generate_command
from radial_app.cli.generate import output_place
from radial_app.cli.render import output_of
from radial_app.jobs.job import DEFAULT_NAME, Job
from radial_app.jobs.store import JobStore
from radial_app.server.views import VideoRequest


def test_the_version_takes_no_time() -> None:
    """A quarter of a second of CPU, of which Python itself takes a part; no library may be loaded for it."""
    code = "import sys; sys.argv = ['radial', '--version']; from radial_app.__main__ import main; main(); "
    code += "print(sorted({'torch', 'numpy', 'pydantic', 'typer', 'rich'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"radial {__version__}\n[]\n"


def test_commands_start_without_torch() -> None:
    """A clip is estimated and the devices are counted without it, too, and there are as many as it finds."""
    code = """
import contextlib, importlib, io, sys
from radial.loading.devices import gpu_memory
from radial_app.cli.main import main
for name in (
    "jobs", "render", "generate", "estimate", "serving.serve", "watch", "doctor", "models.download", "models.profile",
    "story",
):
    importlib.import_module(f"radial_app.cli.{name}")
    assert "torch" not in sys.modules, name
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["estimate", "--device", "cpu"])
print("torch" in sys.modules)
devices = len(gpu_memory())
print("torch" in sys.modules)
import torch
print(devices == torch.cuda.device_count())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "False", "True"]


def test_models_for_people_and_for_programs(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["models", *arguments])
        assert ended.value.code == 0
        return str(capsys.readouterr().out)

    rows = [line.split("\t") for line in told().splitlines()]
    assert [row[0] for row in rows] == list(MODELS)
    assert {len(row) for row in rows} == {6}
    assert [line.split("\t")[0] for line in told("flf").splitlines()] == ["wan2.1-flf2v-14b"]
    data = json.loads(told("--json", "mochi"))
    assert [one["name"] for one in data["data"]] == ["mochi"]
    assert list(data["presets"]) == ["4-step", "8-step"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    narrow = told()
    assert "Wan-AI/Wan2.1-T2V-14B-Diffusers" in narrow
    assert "presets: 4-step (num_inference_steps 4" in " ".join(narrow.split())
    with pytest.raises(SystemExit):
        cli.main(["models", "hunyan-video"])
    assert "no model with 'hunyan-video'" in capsys.readouterr().err


def test_completion_knows_the_commands() -> None:
    environment = os.environ | {"_RADIAL_COMPLETE": "complete_bash", "COMP_WORDS": "radial gen", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['radial']; from radial_app.__main__ import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.split() == ["generate"], run.stderr


@pytest.mark.slow
def test_ctrl_c_keeps_the_step_that_is_computed(in_empty_folder: Path) -> None:
    """The first lets the step end, and the run goes on from there; nothing of it is called an error."""
    command = [sys.executable, "-u", "-m", "radial_app", "generate", "a red circle", "--num-inference-steps", "400"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with JobStore() as store:
        for _ in range(3000):
            time.sleep(0.1)
            if any(job.step >= 2 for job in store.find(("running",))):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=1800)
        assert process.returncode == 130
        assert "error" not in err
        assert "stopping after this step" in err
        assert err.strip().endswith("stopped")
        (job,) = store.find()
        assert job.state == "paused"
        assert f"`radial jobs run {job.id}` goes on from the last step kept" in " ".join(err.split())
        with safe_open(store.snapshot_path(job.id), "pt") as kept:
            assert json.loads(kept.metadata()["radial"])["step"] >= 2


def test_what_is_so_already_is_no_error(in_empty_folder: Path, capsys: Any) -> None:
    with JobStore() as store:
        (job,) = store.add([Job(id="", request=make_request(prompt="a").resolve())])
    for command, code, words in (("pause", 0, "1 paused"), ("pause", 0, f"{job.id} is paused already"),
                                 ("resume", 0, "1 resumed"), ("resume", 0, "is queued already"),
                                 ("cancel", 0, "1 cancelled"), ("cancel", 0, "is cancelled already"),
                                 ("pause", 1, "is cancelled: not paused")):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            cli.main(["jobs", command, job.id])
        assert (ended.value.code, words in capsys.readouterr().err) == (code, True), (command, words)


@pytest.mark.parametrize(
    ("given", "place", "name"),
    [
        (None, "outputs", DEFAULT_NAME), ("clips", "clips", DEFAULT_NAME), ("clips/deep", "clips/deep", DEFAULT_NAME),
        ("there.now", "there.now", DEFAULT_NAME), ("a.mp4", ".", "a"), ("clips/a.webm", "clips", "a"),
    ],
)  # fmt: skip
def test_outputs_by_one_rule(in_empty_folder: Path, given: str | None, place: str, name: str) -> None:
    """A name with a suffix is a file, one without a folder, and so is a folder that is there."""
    (in_empty_folder / "there.now").mkdir()
    request = make_request(prompt="a", seed=1).resolve()
    path = None if given is None else Path(given)
    found = output_place(path, None, None, None, True, False, request)
    assert (Path(found.folder), found.name) == ((in_empty_folder / place).resolve(), name)
    if given not in ("a.mp4", "clips/a.webm", "there.now"):
        rendered = output_of(given, None, None, None, True)
        assert (Path(rendered.folder), rendered.name) == (in_empty_folder / place, name)


def test_a_name_that_cannot_be_written_is_refused_before_the_render(in_empty_folder: Path, capsys: Any) -> None:
    for name in (f"{'ü' * 120}.mp4", f"{'a' * 240}.mp4"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["generate", "a", "--output", name])
        assert ended.value.code == 2
        assert "bytes; 200 are the most" in capsys.readouterr().err


def test_help_and_interface_say_the_same_of_a_field() -> None:
    """Every field has its words in one place; the command line and the REST interface both show them."""
    options = {
        one.name: get_args(one.annotation)[1].help
        for one in inspect.signature(generate_command, eval_str=True).parameters.values() if get_args(one.annotation)
    }  # fmt: skip
    described = {
        name: field["description"] for name, field in VideoRequest.model_json_schema()["properties"].items()
        if "description" in field
    }  # fmt: skip
    assert set(described) == set(VideoRequest.model_fields)
    assert set(GenerationRequest.model_fields) - {"model", "loras"} <= set(WORDS)
    otherwise = {"prompt", "image"}  # what is said of stdin, and of uploads
    shared = WORDS.keys() & options.keys() & described.keys() - otherwise
    assert len(shared) > 35
    more = dict.fromkeys(("then", "references", "keyframes"), "; repeatable")
    more |= {"decoder": ", or such a decoder's file"}
    assert {name: options[name] for name in shared} == {name: sentence(name, more.get(name, "")) for name in shared}
    assert {name: described[name] for name in shared} == {name: WORDS[name] for name in shared}
