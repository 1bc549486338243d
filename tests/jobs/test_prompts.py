"""Prompts and lists as people write them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from radial import RequestError
from radial.request import make_request
from radial.shorthands import spell_out
from radial_app.cli.main import main
from radial_app.cli.render import read_all
from radial_app.jobs.job import Output, changed_request
from radial_app.jobs.lists.job_files import JobFileError, read_jobs
from radial_app.jobs.lists.prompts import draw_words, expand_prompt

WORDS = {"animal": ["fox", "owl"], "odd": ["a|b", "{c}", "#d"]}


def expand(prompt: str, warnings: list[str] | None = None) -> list[str]:
    told: list[str] = [] if warnings is None else warnings
    return [draw_words(text, WORDS, Path("/none"), "") for text in expand_prompt(prompt, WORDS, told)]


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("a {red|blue} {fox|owl}", ["a red fox", "a red owl", "a blue fox", "a blue owl"]),
        ("a {red|{dark|light} blue} fox", ["a red fox", "a dark blue fox", "a light blue fox"]),
        ("{a|{b|{c|d}}}{1| 2 }", ["a1", "a2", "b1", "b2", "c1", "c2", "d1", "d2"]),
        ("a {animal}", ["a fox", "a owl"]),
        ("{one {animal}|two}", ["one fox", "one owl", "two"]),
        ("{odd}!", ["a|b!", "{c}!", "#d!"]),
        ("a{, big|} fox", ["a, big fox", "a fox"]),
        ("{word} {}", ["{word} {}"]),  # no wildcard, and no choice
        (r"\{a|b\}", ["{a|b}"]),
        (r"{a\|b|c}", ["a|b", "c"]),
        (r"\# no comment \_\_animal__", ["# no comment __animal__"]),
        (r"a\n b\\c", [r"a\n b\\c"]),  # other backslashes are as they are
        ('{"camera": "pan | tilt", "subject": {"is": "a {red|blue} fox"}}',) * 1 + (None,),
    ],
)
def test_choices(prompt: str, meant: list[str] | None) -> None:
    warnings: list[str] = []
    assert expand(prompt, warnings) == (meant or [prompt])
    assert warnings == []


@pytest.mark.parametrize(("prompt", "sign"), [("a {red|blue fox", "{"), ("a red} fox", "}"), ("{a|b} {c", "{")])
def test_braces_alone_are_kept_and_told(prompt: str, sign: str) -> None:
    warnings: list[str] = []
    found = expand(prompt, warnings)
    assert all(sign in text for text in found)
    (warning,) = warnings
    assert warning.startswith(f"{sign} without its other half is taken as it is in {prompt!r}")


def test_many_braces_take_no_time() -> None:
    warnings: list[str] = []
    assert expand("{" * 15_000, warnings) == ["{" * 15_000]
    with pytest.raises(RequestError, match="one prompt stands for 100,000 at most, and this one for 1,048,576"):
        expand("{a|b}" * 20)
    with pytest.raises(RequestError, match="more than 20 deep"):
        expand("{a|" * 30 + "b" + "}" * 30)


def read(folder: Path, name: str, content: str, **more: Any) -> Any:
    (folder / name).write_bytes(content.encode())
    return read_jobs(folder / name, output=Output(), **more)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85", "\r"])
def test_a_prompt_is_torn_at_ends_of_lines_alone(tmp_path: Path, mark: str) -> None:
    jobs = read(tmp_path, "a.txt", f"a red{mark}fox\r\na blue owl\n\\# a green one\n# nothing\n")
    assert [job.request.prompt for job in jobs] == [f"a red{mark}fox", "a blue owl", "# a green one"]
    (tmp_path / "place.txt").write_bytes(f"\ufeffa quiet{mark}lake\r\n".encode())
    (job,) = read(tmp_path, "b.txt", "at __place__\n")
    assert job.request.prompt == f"at a quiet{mark}lake"


def test_slips_have_their_line(tmp_path: Path) -> None:
    warnings: list[str] = []
    read(tmp_path, "a.txt", "a fox\na {red owl\n", warnings=warnings)
    assert [warning.partition(" without")[0] for warning in warnings] == ["a.txt:2: {"]


def test_yaml_reads_words_as_words(tmp_path: Path) -> None:
    text = 'wildcards: {light: [on, off, yes, no, true, 1:30, 2024-01-01]}\njobs: ["{light}", no, 12:00]\n'
    jobs = read(tmp_path, "a.yaml", text)
    assert [job.request.prompt for job in jobs] == [
        "on",
        "off",
        "yes",
        "no",
        "true",
        "1:30",
        "2024-01-01",
        "no",
        "12:00",
    ]
    (job,) = read(
        tmp_path, "b.yaml", "- {prompt: a, snap: yes, riflex: off, guidance_scale: 1e1, seed: 7, decay: .5}\n"
    )
    assert (job.request.snap, job.request.riflex, job.request.guidance_scale) == (True, False, 10)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "jobs:\n  - {prompt: b, seed: 0123}\n",
            "a.yaml:2: no YAML: 0123 is read in two ways by versions of YAML; write 123",
        ),
        ("jobs:\n  - {prompt: b, seed: 1_000}\n", "a.yaml:2: no YAML: 1_000 is read in two ways"),
        ("jobs:\n  - {prompt: b, seed: 0x1F}\n", "a.yaml:2: no YAML: 0x1F is read in two ways"),
        ("jobs: [a]\njobs:\n  - b\n", "a.yaml:2: no YAML: jobs is there twice, first in line 1"),
        ("- prompt: a\n  seed: 1\n  seed: 2\n", "a.yaml:3: no YAML: seed is there twice, first in line 2"),
        ("- {prompt: a, size: 32x32, height: 32}\n", "a.yaml:1: size and height say the same: give one of them"),
        ("- {prompt: a, preset: 5-step}\n", "a.yaml:1: unknown preset '5-step'; there is 4-step, 8-step"),
        ("- {prompt: a, seconds: soon}\n", "a.yaml:1: seconds must be a number above 0, not 'soon'"),
    ],
)
def test_what_misleads_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(JobFileError) as caught:
        read(tmp_path, "a.yaml", text)
    assert caught.value.problems[0].startswith(told)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "yaml"])
def test_shorthands_in_every_kind_of_list(tmp_path: Path, kind: str) -> None:
    row = {"prompt": "a", "model": "wan2.1-14b", "size": "832x480", "seconds": 3, "preset": "4-step"}
    text = {
        "csv": ",".join(row) + "\n" + ",".join(map(str, row.values())), "jsonl": json.dumps(row),
        "yaml": json.dumps([row]),
    }[kind]  # fmt: skip
    (job,) = read(tmp_path, f"a.{kind}", text)
    found = job.request
    assert (found.width, found.height, found.num_frames) == (832, 480, 49)
    assert (found.num_inference_steps, found.guidance_scale, found.sampler, found.flow_shift) == (4, 1, "lcm", 5)


def test_shorthands_and_what_goes_before_them() -> None:
    assert spell_out({"prompt": "a", "preset": "4-step", "guidance_scale": 2.0, "flow_shift": None}) == {
        "prompt": "a", "num_inference_steps": 4, "guidance_scale": 2.0, "flow_shift": 5.0, "sampler": "euler",
    }  # fmt: skip
    assert spell_out({"seconds": 2, "fps": 8})["num_frames"] == 17
    assert spell_out({"seconds": "1.5"})["num_frames"] == 25
    with pytest.raises(RequestError, match=r"seconds must be at most 256\.1 at 16 frames a second, not 600"):
        spell_out({"seconds": 600})
    waiting = make_request(prompt="a", model="wan2.1-14b", seed=1).resolve()
    assert changed_request(waiting, {"seconds": 2, "size": "480x832"}).num_frames == 33


def test_stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a red fox\na {blue|green} owl\n"))
    jobs = read_all([Path("-")], Output(), None, "b")
    assert [(job.request.prompt, job.source) for job in jobs] == [
        ("a red fox", "stdin.txt:1"), ("a blue owl", "stdin.txt:2"), ("a green owl", "stdin.txt:2"),
    ]  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO('{"prompt": "a", "seconds": 1}\n'))
    (job,) = read_all([Path("-")], Output(), ["seed=3"], "b")
    assert (job.request.num_frames, job.request.seed) == (17, 3)
    monkeypatch.setattr("sys.stdin", io.StringIO("a red fox\n"))
    with pytest.raises(SystemExit) as ended:
        main(["generate", "-", "--queue", "--size", "64x64", "--seconds", "1", "--data-dir", str(tmp_path)])
    assert ended.value.code == 0
    id_ = capsys.readouterr().out.strip()
    with pytest.raises(SystemExit):
        main(["jobs", "--data-dir", str(tmp_path), "show", id_])
    told = json.loads(capsys.readouterr().out)["request"]
    assert (told["prompt"], told["width"], told["num_frames"]) == ("a red fox", 64, 17)
