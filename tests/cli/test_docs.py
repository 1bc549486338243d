"""Every command that the documentation shows does what it says here, or says in one line what is missing."""

from __future__ import annotations

import contextlib
import glob
import io
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from radial import Video
from radial_app.cli import main as cli
from radial_app.cli.serving import accounts

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_in(page: Path) -> list[str]:
    """Lines of code that run ``radial``, whole where a backslash parts them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(
        r"^(?: {4}|)(?:\.venv/bin/|\$ |[A-Z_]+=\S+ |torchrun .*-m )*(radial(?:_app)? [a-z].*)$", text, re.MULTILINE
    )
    return [line for line in found if not line.startswith(("radial/", "radial drives"))]


COMMANDS = [(page.name, line) for page in PAGES for line in commands_in(page)]


@pytest.fixture(scope="module")
def root() -> Any:
    cli._add_commands([])
    return typer.main.get_command(cli.app)


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) > 60
    assert {"README.md", "generate.md", "render.md", "finetune.md", "evaluate.md"} <= {name for name, _ in COMMANDS}


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line[:60]}" for page, line in COMMANDS])
def test_a_command_of_the_documentation_is_taken(page: str, line: str, root: Any) -> None:
    words = [word for word in shlex.split(line, comments=True)[1:] if word not in ("--debug", "--offline")]
    for stop in ("|", ">", "&&", ";", "2>"):
        words = words[: words.index(stop)] if stop in words else words
    words = cli._with_dashes(["x" if word == "..." else word for word in words])
    command, context = root, None
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    context = command.make_context(command.name, words)
    assert context.command is command


# What makes a command take seconds, and is no other command for it.
FOR_LESS = {
    "generate": ["--num-frames", "9", "--num-inference-steps", "1"],
    "story lines.txt": ["--num-inference-steps", "1"],
    "render": ["--set", "num_frames=5", "--set", "num_inference_steps=1", "--jobs-per-device", "1"],
    "evaluate attention": ["--num-frames", "9", "--num-inference-steps", "1"],
    "evaluate control": ["--num-inference-steps", "1", "--clips", "1", "--task", "path"],
    "evaluate shapes": ["--num-frames", "9", "--num-inference-steps", "1", "--prompts", "1"],
}
STAYING = {"studio": "http://", "serve": "http://", "watch": "watching", "work": ""}  # until they are stopped
# What may be missing where nothing but the demo was made, in the words that say so.
MISSING = re.compile(
    r"the Hugging Face hub is not asked|pip install|no (?:such )?(?:LoRA |policy )?file|there is no|No such file|"
    r"no Ray cluster|has no videos|no caption"
)
# These lack nothing.
WORKING = re.compile(
    r"radial (?:generate (?!.*--(?:model|lora))|render jobs\.(?:txt|yaml)(?!.*--ray)|"
    r"evaluate (?!story|control|attention --captures)|story (?!.*--lora)|receipt|rerun|verify|inspect|estimate|"
    r"doctor|jobs |presets |accounts add|studio(?!.*--listen)|serve|work|watch)"
)


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with files by the names that the pages give them, and a queue with a job of one's own."""
    folder = tmp_path_factory.mktemp("home")
    frames = np.repeat(np.linspace(20, 235, 17).astype(np.uint8)[:, None], 64 * 64 * 3, 1).reshape(17, 64, 64, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RADIAL_DATA_DIR", str(folder / "queue"))
        for name in ("outputs", "clips", "inbox"):
            Path(name).mkdir()
        for name in ("outputs/fox.mp4", "outputs/a.mp4", "outputs/b.mp4"):
            Video(frames, 16).write(Path(name))
        for name in ("fox.png", "field.png"):
            Image.fromarray(frames[9]).save(name)
        Path("jobs.txt").write_text("# jobs.txt\na {red|grey} circle rises\n")
        Path("jobs.yaml").write_text("jobs:\n  - {prompt: a red circle rises}\n")
        Path("lines.txt").write_text("0.3s anna (a red star): rises\n# cut\n0.3s ben: falls\n0.3s anna: spins\n")
        Path("more.txt").write_text("0.3s ben: rises\n0.3s anna: falls\n")
        Path("jobs.csv").write_text("prompt,seed,num_frames,lora\na fox,1,5,\na fox,1,9,fox.safetensors:0.8\n")
        demo = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "/radial generate" in line)
        code, said = run([*shlex.split(demo)[1:], *FOR_LESS["generate"]])
        assert code == 0, said
        shutil.copy(said.split()[-1], "clip.mp4")
        yield folder


def run(words: list[str]) -> tuple[int, str]:
    """One command in this process: its exit code, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stop:
        cli.main(words)
    return int(stop.value.code or 0), said.getvalue()


def run_until_ready(words: list[str], folder: Path, sign: str) -> tuple[int, str]:
    """One that goes on until Ctrl+C, which it gets when it has said that it is ready."""
    command = [sys.executable, "-m", "radial_app", *words, *(["--no-browser"] if words[0] == "studio" else [])]
    process = subprocess.Popen(
        command if words[0] in ("work", "watch") else [*command, "--port", "0"], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if sign in line:
            process.send_signal(signal.SIGINT)
            break
    said += process.communicate(timeout=600)[0]
    return process.returncode, said


@pytest.mark.slow
def test_every_command_of_the_documentation_runs(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """In the order of the pages, where nothing but the demo was made and nothing can be downloaded; each command with
    each of its options once: that all lines are taken is tried above."""
    monkeypatch.chdir(at_home)
    monkeypatch.setenv("RADIAL_DATA_DIR", str(at_home / "queue"))
    monkeypatch.setattr(accounts, "_password", lambda **_: "a long password")
    tried: dict[tuple[str, ...], set[str]] = {}
    for line in dict.fromkeys(line for _, line in COMMANDS):
        words = shlex.split(line, comments=True)[1:]
        options = {word for word in words if word.startswith("--")}
        command = tuple(words[: 1 + (words[0] in ("evaluate", "finetune", "jobs", "presets", "accounts"))])
        if command in tried and (options <= tried[command] or (words[0] in STAYING and "--listen" not in options)):
            continue  # another server takes seconds to start
        tried.setdefault(command, set()).update(options)
        with subtests.test(line):
            shown = line.replace("ID", job_of_ours()) if line.startswith("radial jobs") else line
            words = shlex.split(shown, comments=True)[1:]
            words = [found for word in words for found in (sorted(glob.glob(word)) or [word])]
            if not {"--cache", "--guidance-start", "--strength"} & set(words):  # these want several steps
                less = next((more for name, more in FOR_LESS.items() if shown.startswith(f"radial {name}")), [])
                words += less if "--seconds" not in words else less[2:]  # which say the length
            sign = STAYING.get(words[0])
            code, said = run(words) if sign is None else run_until_ready(words, at_home, sign)
            assert "Traceback" not in said
            assert "--debug shows more" not in said, "an error that nobody thought of"
            if WORKING.match(line):
                assert code in ((0,) if sign is None else (0, 130)), said
            elif code and sign is None:
                assert said.count("error:") == 1, said
                assert MISSING.search(" ".join(said.split())), said


def job_of_ours() -> str:
    """A job that waits, as people who command the queue have one."""
    code, said = run(["generate", "a red fox", *FOR_LESS["generate"], "--queue"])
    assert code == 0
    return said.split()[-1]
