"""Every command that the documentation shows is one that there is, with options that it takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from radial_app.cli import main as cli

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
