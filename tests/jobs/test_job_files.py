"""Files of jobs: every kind, every problem with its line, and nothing that makes the reader stumble."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from radial import RadialError
from radial.request import GenerationRequest, make_request
from radial.video.clip import Video
from radial_app.jobs.job import Job, Output
from radial_app.jobs.lists.job_files import KINDS, JobFileError, read_jobs

OUTPUT = Output(folder="/out")


def read(folder: Path, name: str, text: str, **more: Any) -> list[Job]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_jobs(folder / name, output=OUTPUT, **more)


def problems(folder: Path, name: str, text: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        read(folder, name, text)
    return caught.value.problems


def test_prompts_a_line(tmp_path: Path) -> None:
    jobs = read(tmp_path, "a.txt", "\ufeff# comment\na red circle\n\n  a blue {star|ring} \n", defaults={"seed": 4})
    assert [job.request.prompt for job in jobs] == ["a red circle", "a blue star", "a blue ring"]
    assert [job.source for job in jobs] == ["a.txt:2", "a.txt:4", "a.txt:4"]
    assert [job.index for job in jobs] == [1, 2, 3]
    assert {job.request.seed for job in jobs} == {4}
    assert jobs[0].request.num_frames == 33  # resolved


def test_csv(tmp_path: Path) -> None:
    text = (
        "prompt,seed,num_frames,output,lora,snap\n"
        '"a, b",5,33,{index}-x,bundled:tiny-long:0.5,\n'
        "c,,17,,bundled:tiny-long;bundled:tiny-long:0.2,true\n"
    )
    one, two = read(tmp_path, "a.csv", text)
    assert (one.request.prompt, one.request.seed, one.output.name) == ("a, b", 5, "{index}-x")
    assert [(lora.path, lora.weight) for lora in one.request.loras] == [("bundled:tiny-long", 0.5)]
    assert [lora.weight for lora in two.request.loras] == [1.0, 0.2]
    assert two.request.seed >= 0


def test_what_steers_a_clip_lies_beside_the_file(tmp_path: Path) -> None:
    """Lists in a table have semicolons; every path is found from the file's folder."""
    Image.new("RGB", (32, 32), "white").save(tmp_path / "a.png")
    Video(np.zeros((2, 32, 32, 3), np.uint8), 16).write(tmp_path / "a.mp4")
    text = (
        "prompt,model,control_video,mask,references,keyframes,strength\n"
        "a,wan2.1-vace-1.3b,a.mp4,a.png,a.png; a.png,0:a.png;-1:a.png,\n"
        "b,tiny,a.mp4,,,,0.5\n"
    )
    steered, over = read(tmp_path, "a.csv", text)
    image = str(tmp_path / "a.png")
    assert (steered.request.control_video, steered.request.mask) == (str(tmp_path / "a.mp4"), image)
    assert steered.request.references == (image, image)
    assert [(one.frame, one.image) for one in steered.request.keyframes] == [(0, image), (-1, image)]
    assert over.request.strength == 0.5
    (line,) = problems(tmp_path, "b.yaml", "- {prompt: a, model: wan2.1-vace-1.3b, keyframes: ['3:none.png']}")
    assert line == f"b.yaml:1: keyframes: no such file: {tmp_path / 'none.png'}"


def test_what_a_row_leaves_out_of_its_steps(tmp_path: Path) -> None:
    text = (
        "- {prompt: a, cache: fast, guidance_start: .1, guidance_end: 0.6}\n- {prompt: b, cache: off, decoder: full}\n"
    )
    one, two = read(tmp_path, "a.yaml", text)
    assert (one.request.cache, one.request.guided_steps, two.request.cache) == ("fast", range(2, 12), "off")
    (said,) = problems(tmp_path, "b.csv", "prompt,cache,preset\na,auto,4-step\n")
    assert said == "b.csv:2: " + said.partition(": ")[2]
    assert "cache auto is for 10 steps or more, not 4" in said


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "seed": 1, "priority": 3}, {"prompt": "b", "loras": [{"path": "bundled:tiny-long"}]}]
    one, two = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert (one.priority, two.request.loras[0].path) == (3, "bundled:tiny-long")


def test_yaml_with_defaults_grids_and_wildcards(tmp_path: Path) -> None:
    text = """
defaults: {num_inference_steps: 5}
wildcards:
  animal: [fox, cat]
grid:
  seed: [1, 2]
jobs:
  - a red circle
  - prompt: "a {animal} on __place__"
    size: 64x48
    grid: {guidance_scale: [1, 3]}
"""
    (tmp_path / "place.txt").write_text("# places\nsnow\nsand\n")
    jobs = read(tmp_path, "a.yaml", text)
    assert len(jobs) == 2 + 2 * 2 * 2
    assert {job.request.num_inference_steps for job in jobs} == {5}
    assert [job.request.seed for job in jobs[:2]] == [1, 2]
    assert [job.source for job in jobs[1:3]] == ["a.yaml:8", "a.yaml:9"]
    of_grid = {(job.request.prompt.split(" ")[1], job.request.seed, job.request.guidance_scale) for job in jobs[2:]}
    assert len(of_grid) == 8
    assert {job.request.width for job in jobs[2:]} == {64}
    assert all(job.request.prompt.endswith(("on snow", "on sand")) for job in jobs[2:])
    again = read(tmp_path, "a.yaml", text)
    assert [job.request.prompt for job in again] == [job.request.prompt for job in jobs]
    assert [job.digest for job in again] == [job.digest for job in jobs]
    assert len({job.digest for job in jobs}) == len(jobs)
    assert [job.request.prompt for job in read(tmp_path, "b.yml", "- a\n- {prompt: b}")] == ["a", "b"]


@pytest.mark.parametrize(
    "value",
    ["!!set {a}", "!!binary aGk=", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp 2020-01-01", "!!python/tuple [a]",
     "!<tag:yaml.org,2002:set> {a}", "{!!merge x: {a: 1}}", "!own a"],
)  # fmt: skip
def test_yaml_has_no_types_but_those_of_fields(tmp_path: Path, value: str) -> None:
    (line,) = problems(tmp_path, "a.yaml", f"- prompt: x\n  then: {value}")
    assert line.startswith("a.yaml:2: no YAML: ")
    assert "is no type that is taken here" in line


@pytest.mark.parametrize("value", ["!!bool x", "!!int ''", "!!float ''", "!!float 1e", "!!map [a]", "{[a]: b}"])
def test_yaml_that_fits_no_type_is_a_line(tmp_path: Path, value: str) -> None:
    (line,) = problems(tmp_path, "a.yaml", f"- prompt: x\n  seed: {value}")
    assert line.startswith("a.yaml:2: no YAML: ")


def test_the_same_line_twice_is_two_jobs(tmp_path: Path) -> None:
    one, two, three = read(tmp_path, "a.txt", "a\na\nb\n")
    assert len({one.digest, two.digest, three.digest}) == 3


def test_globs_of_images(tmp_path: Path, wan_folder: Path) -> None:
    (tmp_path / "shots").mkdir()
    for name in ("b", "a"):
        Image.new("RGB", (32, 32)).save(tmp_path / "shots" / f"{name}.png")
    spec = {"prompt": "x", "image": "shots/*.png", "model": "wan2.1-i2v-14b-480p", "seed": 1}
    jobs = read(tmp_path, "a.jsonl", json.dumps(spec))
    assert [job.request.image for job in jobs] == [str(tmp_path / "shots" / f"{name}.png") for name in "ab"]
    (only,) = problems(tmp_path, "a.jsonl", json.dumps(spec | {"image": "none/*.png"}))
    assert only.startswith("a.jsonl:1: no image matches 'none/*.png'")
    (only,) = problems(tmp_path, "a.jsonl", json.dumps(spec | {"image": "none.png"}))
    assert only.startswith("a.jsonl:1: image: no such file")


PROBLEMS: dict[str, tuple[str, str, list[str]]] = {
    "all of them": (
        "a.jsonl",
        '{"prompt": "", "height": 33}\n{"prompt": "a", "height": 1}\nno\n[]\n{"seed": 1}\n{"prompt": "a", "x": 1}',
        [":1: prompt must not be empty", ":2: height must be", ":3: no JSON", ":4: an object", ":5: prompt is missing",
         ":6: the job: unknown field 'x'"],
    ),
    "size": ("a.jsonl", '{"prompt": "a", "height": 40}', [":1: height must be", ]),
    "column": ("a.csv", "prompt,colour\na,b\n", [":1: unknown column 'colour'"]),
    "semicolons": ("a.csv", "prompt;seed\na;1\n", ["columns are separated by commas"]),
    "values": ("a.csv", "prompt,seed\na,1,2\n", [":2: more values than columns"]),
    "number": ("a.csv", "prompt,seed\na,one\n", [":2: seed must be"]),
    "yaml": ("a.yaml", "jobs:\n  - [\n", [": no YAML"]),
    "yaml defaults": ("a.yaml", "jobs: [a, b]\ndefaults: {sed: 1}\n", ["unknown field 'sed'; did you mean seed or"]),
    "grid": ("a.jsonl", '{"prompt": "a", "grid": [1]}', [":1: grid must be a mapping"]),
    "yaml grid": ("a.yaml", "jobs:\n  - {prompt: a, grid: 3}\n", [":2: grid must be a mapping"]),
    "yaml key": ("a.yaml", "job: []\n", ["unknown key 'job'"]),
    "yaml alias": ("a.yaml", "jobs:\n  - &a {prompt: x}\n  - *a\n", [":3: no YAML: aliases are not supported"]),
    "yaml row": ("a.yaml", "jobs:\n  - 5\n", [":2: a prompt or a mapping"]),
    "wildcard": ("a.txt", "a __thing__\n", [":1: no wildcard 'thing'"]),
    "template": ("a.jsonl", '{"prompt": "a", "output": "{x}"}', [":1: name the template"]),
    "weight": ("a.jsonl", '{"prompt": "a", "lora": "x:strong"}', [":1: lora must be"]),
    "priority": ("a.jsonl", '{"prompt": "a", "priority": "high"}', [":1: priority must be a whole number"]),
    "model": ("a.jsonl", '{"prompt": "a", "model": "wan9"}', [":1: "]),
    "empty": ("a.txt", "# nothing\n", [": no jobs in it"]),
    "kind": ("a.doc", "a", [": job files end in .txt"]),
    "explosion": ("a.yaml", "grid: {" + ", ".join(f"{n}: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]" for n in (
        "seed", "num_inference_steps", "guidance_scale", "fps", "dense_steps", "dense_layers")) + "}\njobs: [a]\n",
        [":2: more than"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_have_their_line(tmp_path: Path, name: str) -> None:
    file, text, expected = PROBLEMS[name]
    found = problems(tmp_path, file, text)
    assert len(found) == len(expected), found
    for problem, says in zip(found, expected, strict=True):
        assert says in problem
        assert file in problem


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, content in ((tmp_path / "a.txt", b"\xff\xfe\x00"), (tmp_path / "none.txt", None)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(JobFileError, match=path.name):
            read_jobs(path, output=OUTPUT)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from([*GenerationRequest.model_fields, "lora", "output", "priority", "grid", "size", "x"])


@given(kind=st.sampled_from(KINDS), content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(deadline=None, max_examples=150)
def test_any_file_is_read_or_refused(kind: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{kind}"
    path.write_bytes(content)
    with contextlib.suppress(JobFileError):
        assert read_jobs(path, output=OUTPUT)


@given(row=st.dictionaries(fields, json_like, max_size=6), kind=st.sampled_from([".jsonl", ".yaml"]))
@settings(deadline=None, max_examples=150)
def test_any_row_is_read_or_refused(row: dict[str, Any], kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{kind}"
    text = json.dumps({"prompt": "a"} | row)
    path.write_text(text if kind == ".jsonl" else f"jobs: [{text}]", encoding="utf-8")
    with contextlib.suppress(JobFileError):
        assert read_jobs(path, output=OUTPUT)


@given(row=st.dictionaries(st.sampled_from(list(GenerationRequest.model_fields)), json_like, max_size=8))
@settings(deadline=None, max_examples=300)
def test_any_request_is_made_or_refused(row: dict[str, Any]) -> None:
    with contextlib.suppress(RadialError):
        assert make_request(**({"prompt": "a"} | row)).resolve().seed >= 0
