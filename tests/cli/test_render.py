"""``render``, ``watch``, the queue's commands and receipts, as a user meets them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import QUICK, run

from radial import RadialError, Video
from radial.video.clip import read_frames, read_receipt
from radial.video.encoding import Encoding, encode
from radial_app.cli.receipts import request_of
from radial_app.cli.render import enqueue, output_of, read_all
from radial_app.jobs.job import Output
from radial_app.jobs.lists.job_files import read_jobs
from radial_app.jobs.store import JobStore
from radial_app.worker.pool import WorkerPool

Capsys = pytest.CaptureFixture[str]
SET = [
    part
    for name, value in {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2}.items()
    for part in ("--set", f"{name}={value}")
]


@pytest.fixture
def render(in_empty_folder: Path, capsys: Capsys, wan_folder: Path) -> Any:
    """``render`` with small clips of a small model; returns exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return run(capsys, "render", *arguments, *SET, "--set", f"model={wan_folder}", "--device", "cpu")

    return call


def test_a_file_from_beginning_to_end(render: Any, capsys: Capsys, in_empty_folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a red circle", "seed": 1},
        {"prompt": "a blue star", "seed": 2, "loras": [{"path": "wrong.safetensors"}]},
        {"prompt": "a green ring", "seed": 3},
    ]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("wrong.safetensors").write_bytes(b"nothing")
    code, out, err = render("jobs.jsonl", "--dry-run")
    assert (code, list(Path().rglob("*.mp4"))) == (2, []), err
    assert "jobs.jsonl:2: LoRA wrong.safetensors is broken" in " ".join(err.split())
    rows[1].pop("loras")
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = render("jobs.jsonl", "--dry-run", "--output", "clips/{index:02}-{slug}.mp4")
    assert code == 0, err
    assert re.search(r"48x32, 5 +2 +\d+% +\? +[\d.]+ [MG]B +01-a-red-circle\.mp4", out), out
    assert list(Path().rglob("*.mp4")) == []
    code, out, err = render(
        "jobs.jsonl", "--output", "clips/{index:02}-{slug}.mp4", "--manifest", "list.json", "--crf", "30"
    )
    assert code == 0, err
    names = ["01-a-red-circle.mp4", "02-a-blue-star.mp4", "03-a-green-ring.mp4"]
    assert sorted(os.listdir("clips")) == names
    assert sorted(Path(line).name for line in out.split()) == names
    manifest = json.loads(Path("list.json").read_text())
    assert [job["state"] for job in manifest["jobs"]] == ["done"] * 3
    assert manifest["jobs"][2]["source"] == "jobs.jsonl:3"
    assert "3 done" in err
    # Again, with a job more: what was made is skipped.
    with Path("jobs.jsonl").open("a") as file:
        file.write('\n{"prompt": "a new one", "seed": 4}')
    os.unlink("clips/02-a-blue-star.mp4")
    code, out, err = render("jobs.jsonl", "--output", "clips/{index:02}-{slug}.mp4", "--resume", "--crf", "30")
    assert code == 0, err
    assert sorted(Path(line).name for line in out.split()) == ["02-a-blue-star.mp4", "04-a-new-one.mp4"]
    assert "2 were made before" in err
    code, out, err = render(
        "jobs.jsonl", "--dry-run", "--resume", "--crf", "30", "--output", "clips/{index:02}-{slug}.mp4"
    )
    assert len(re.findall(r" made ", out)) == 4


def test_a_dry_run_tells_each_job_by_itself(render: Any) -> None:
    """What it computes, whatever is alike but that; and its name, where others have the same."""
    common = {"prompt": "a star", "seed": 1, "height": 128, "width": 128, "num_frames": 33, "attention": "adaptive"}
    rows = [common | {"block_size": 16, "density": density} for density in (0.2, 0.9)]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = render("jobs.jsonl", "--dry-run")
    assert code == 0, err
    shares = [int(share) for share in re.findall(r"(\d+)%", out)]
    assert len(shares) == 2
    assert shares[0] < shares[1]
    assert re.findall(r"a-star-1\S*", out) == ["a-star-1.mp4", "a-star-1-2.mp4"]


def test_errors_are_told_before_anything_runs(render: Any) -> None:
    Path("jobs.csv").write_text("prompt,height\na,33\nb,32\nc,1\n")
    Path("more.txt").write_text("__none__\n")
    code, out, err = render("jobs.csv", "more.txt")
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 3
    found = re.findall(r"(?:jobs|more)\.\w+:\d", err)
    assert found == ["jobs.csv:2", "jobs.csv:4", "more.txt:1"]
    with JobStore() as store:
        assert store.find() == []


def test_one_that_fails_does_not_stop_the_others(render: Any, capsys: Capsys, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"unrelated.lora_A.weight": torch.zeros(4, 8)}, "wrong.safetensors")
    Path("jobs.csv").write_text("prompt,seed,lora\na,1,wrong.safetensors\nb,2,\n")
    code, out, err = render("jobs.csv")
    assert code == 1
    assert len(out.split()) == 1
    assert "1 done" in err
    assert "1 failed" in err
    code, out, _ = run(capsys, "jobs", "list", "--json", "--state", "failed")
    (failed,) = map(json.loads, out.splitlines())
    assert failed["source"] == "jobs.csv:2"
    code, _, err = run(capsys, "jobs", "run", failed["id"])
    assert code == 1


def test_ctrl_c_and_resume(in_empty_folder: Path, wan_folder: Path) -> None:
    Path("jobs.txt").write_text("a\nb\n")
    command = [sys.executable, "-m", "radial_app", "render", "jobs.txt", "--set", f"model={wan_folder}", *SET,
               "--set", "num_inference_steps=200", "--set", "seed=5", "--device", "cpu",
               "--output", "o/{slug}.mp4"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with JobStore() as store:
        deadline = time.monotonic() + 1800
        while not any(job.step > 5 for job in store.find(["running"])):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=1800)
        assert process.returncode == 130, err
        assert "with --resume goes on" in err
        assert "Traceback" not in err
        assert [job.state for job in store.find()] == ["paused", "paused"]
        again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=1800)
        assert again.returncode == 0, again.stderr
        assert sorted(os.listdir("o"))[:2] == ["a.mp4", "b.mp4"]
        assert len(store.find()) == 2
        assert any("goes on from step" in text for job in store.find() for *_, text in store.events(job.id))


def test_watching_a_folder(in_empty_folder: Path, wan_folder: Path) -> None:
    Path("in").mkdir()
    Path("in/a.txt").write_text("a\n")
    command = [sys.executable, "-m", "radial_app", "watch", "in", "--set", f"model={wan_folder}", *SET,
               "--set", "seed=5", "--device", "cpu", "--output", "o/{slug}.mp4"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(names: list[str]) -> None:
        deadline = time.monotonic() + 1800
        while not (Path("o").exists() and sorted(p.name for p in Path("o").glob("[!.]*")) == names):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, os.listdir()
            time.sleep(0.1)

    try:
        wait_for(["a.mp4"])
        Path("in/b.csv").write_text("prompt,height\nx,33\n")
        deadline = time.monotonic() + 1800
        while not Path("in/b.csv.errors.txt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert Path("in/b.csv.errors.txt").read_text().startswith("b.csv:2: height")
        Path("in/a.txt").write_text("a\nc\n")  # edited: only what is new is rendered
        Path("in/b.csv").write_text("prompt,height\nx,32\n")
        wait_for(["a.mp4", "c.mp4", "x.mp4"])
        assert not Path("in/b.csv.errors.txt").exists()
    finally:
        process.send_signal(signal.SIGTERM)  # as a service manager ends it: with its workers, too
        _, err = process.communicate(timeout=1800)
    assert process.returncode == 130, err
    assert "Traceback" not in err


def test_the_same_line_in_two_files_is_two_jobs(in_empty_folder: Path) -> None:
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("a\n")
    with JobStore() as store:
        ids, _ = enqueue(store, read_all([Path("a.txt"), Path("b.txt")], Output(), None, "x"), resume=True)
        assert len(set(ids)) == 2
        again, _ = enqueue(store, read_all([Path("a.txt"), Path("b.txt")], Output(), None, "y"), resume=True)
        assert set(again) == set(ids)
        other, _ = enqueue(store, read_all([Path("a.txt")], Output(folder="elsewhere"), None, "z"), resume=True)
        assert not set(other) & set(ids)


def test_a_device_that_nobody_serves(render: Any) -> None:
    Path("a.jsonl").write_text('{"prompt": "a", "device": "cuda:5"}')
    code, _, err = render("a.jsonl")
    assert code == 2
    assert "a.jsonl:1: device cuda:5 is not rendered on; there is cpu" in " ".join(err.split())


def test_modules_in_the_current_folder_are_not_run(render: Any) -> None:
    Path("yaml.py").write_text("raise SystemExit('run')")
    Path("a.txt").write_text("a\n")
    assert render("a.txt")[0] == 0


def test_states_with_brackets_are_listed(in_empty_folder: Path, capsys: Capsys) -> None:
    with JobStore() as store:
        (job,) = store.add(read_jobs(_written("a.txt", "[bold]a[/nothing]\n"), output=Output()))
        store.claim("w")
        store.end(job.id, "failed", "at [/pytorch/aten/x.cpp:3]")
    code, out, _ = run(capsys, "jobs", "list")
    assert code == 0
    assert "[/pytorch" in out


def _written(name: str, text: str) -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_places_for_workers_are_taken_once(data_folder: Path) -> None:
    with JobStore() as store, store.locks.slot("cpu-0") as free:
        assert free
        pool = WorkerPool(store, ["cpu"])
        pool.tend()
        assert not pool.alive
        with store.locks.slot("cpu-0") as again:
            assert not again


def test_jobs_of_one_model_follow_each_other(in_empty_folder: Path, wan_folder: Path) -> None:
    rows = [{"prompt": str(index), "model": model} for index, model in enumerate(["tiny", str(wan_folder)] * 2)]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    jobs = read_all([Path("a.jsonl")], Output(), None, "b")
    assert [job.request.prompt for job in jobs] == ["0", "2", "1", "3"]
    assert [job.index for job in jobs] == [1, 3, 2, 4]


@pytest.mark.parametrize(
    ("template", "fields", "expected"),
    [
        (None, {}, ("outputs", "{slug}-{seed}", "mp4")),
        ("a/b/{seed}.webm", {}, ("a/b", "{seed}", "webm")),
        ("{model}/{seed}", {"video_format": "gif"}, ("outputs", "{model}/{seed}", "gif")),
        ("x/{seed}.v1", {"video_format": "png"}, ("x", "{seed}.v1", "png")),
    ],
)
def test_templates_on_the_command_line(
    in_empty_folder: Path, template: str | None, fields: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    options = {"video_format": None, "codec": None, "crf": None, "metadata": True} | fields
    output = output_of(template, **options)
    place = str(Path(output.folder).relative_to(in_empty_folder))
    assert (place, output.name, output.encoding.format) == expected


# Receipts


def test_receipts_are_printed_repeated_and_verified(in_empty_folder: Path, capsys: Capsys, wan_folder: Path) -> None:
    base = ["generate", "a red circle", *QUICK, "--model", str(wan_folder), "--seed", "4"]
    assert run(capsys, *base, "--output", "a.webm")[0] == 0
    code, out, _ = run(capsys, "receipt", "a.webm")
    assert json.loads(out)["request"]["seed"] == 4
    code, out, err = run(capsys, "rerun", "a.webm", "--output", "again")
    assert (code, out) == (0, "again/a-red-circle-4.webm\n"), err
    assert np.array_equal(read_frames(Path("a.webm")), read_frames(Path(out.strip())))
    assert run(capsys, "verify", "a.webm")[:2] == (0, "the same: every pixel of every frame\n")
    other = Video(255 - read_frames(Path("a.webm")), 16, read_receipt(Path("a.webm")) | {"radial": "0.0.0"})
    other.write(Path("forged.webm"))
    code, out, err = run(capsys, "verify", "forged.webm")
    assert code == 1
    assert "not the same" in out
    assert "radial was 0.0.0" in err
    assert run(capsys, *base, "--output", "silent.mp4", "--no-metadata")[0] == 0
    code, _, err = run(capsys, "receipt", "silent.mp4")
    assert code == 1
    assert "carries no receipt" in err


receipts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(request=receipts, encoding=receipts, field=st.sampled_from(["prompt", "seed", "model", "loras", "image", "x"]))
@settings(deadline=None, max_examples=60)
def test_any_receipt_is_repeated_or_refused(
    request: Any, encoding: Any, field: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fields = {"prompt": "a", field: request} if field != "x" else request
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    receipt = {"radial": "1", "request": fields}
    file = tmp_path_factory.mktemp("any") / "a.gif"
    encode(frames, 8, receipt | {"encoding": encoding}, file, Encoding(format="gif"))
    with contextlib.suppress(RadialError):
        assert request_of(file)


def test_the_queue_from_the_command_line(in_empty_folder: Path, capsys: Capsys, wan_folder: Path) -> None:
    base = ["generate", "a red circle", *QUICK, "--model", str(wan_folder), "--queue"]
    ids = [run(capsys, *base, "--seed", str(seed))[1].strip() for seed in (1, 2, 3)]
    code, out, _ = run(capsys, "jobs", "list")
    assert "3 queued" in out
    assert run(capsys, "jobs", "move", ids[2], "1")[0] == 0
    assert run(capsys, "jobs", "pause", ids[0])[1] == f"{ids[0]}\n"
    assert run(capsys, "jobs", "edit", ids[1], "seed=9", "prompt=a new prompt")[0] == 0
    code, _, err = run(capsys, "jobs", "edit", ids[1], "height=33")
    assert (code, "nearest" in err) == (2, True)
    code, out, _ = run(capsys, "jobs", "list", "--json")
    assert [json.loads(line)["request"]["seed"] for line in out.splitlines()] == [3, 1, 9]
    assert run(capsys, "jobs", "priority", ids[1], "--value", "4")[0] == 0
    copy = run(capsys, "jobs", "duplicate", ids[0], "--set", "seed=7")[1].strip()
    assert run(capsys, "jobs", "cancel", ids[2], copy)[0] == 0
    code, out, err = run(capsys, "jobs", "pause", copy)
    assert (code, out) == (1, "")
    assert f"{copy} is cancelled: not paused" in " ".join(err.split())
    done = subprocess.run(
        [sys.executable, "-m", "radial_app", "work", "--until-idle"], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir("outputs") == ["a-new-prompt-9.mp4"]
    assert run(capsys, "jobs", "run", ids[0])[:2] == (0, "outputs/a-red-circle-1.mp4\n")
    code, out, _ = run(capsys, "jobs", "show", ids[0])
    shown = json.loads(out)
    assert shown["files"][0].endswith("outputs/a-red-circle-1.mp4")
    assert shown["receipts"][0]["request"]["seed"] == 1
    assert shown["log"][-1].endswith("done")
    for change in (["move", ids[0], "1"], ["priority", ids[0]]):
        code, _, err = run(capsys, "jobs", *change)
        assert (code, f"job {ids[0]} is done: only jobs that wait can be" in " ".join(err.split())) == (2, True)
    assert run(capsys, "jobs", "remove", "all")[0] == 0
    assert "no jobs" in run(capsys, "jobs", "list")[1]
    assert sorted(os.listdir("outputs")) == ["a-new-prompt-9.mp4", "a-red-circle-1.mp4"]
    code, _, err = run(capsys, "jobs", "show", "none")
    assert (code, "no job 'none'" in err) == (2, True)


def test_a_job_file_may_change_while_it_renders(in_empty_folder: Path, data_folder: Path) -> None:
    """Jobs are rows of the queue from the moment the file is read."""
    Path("a.txt").write_text("a\nb\n")
    with JobStore() as store:
        store.add(read_jobs(Path("a.txt"), output=Output()))
        Path("a.txt").write_text("something else")
        assert [job.request.prompt for job in store.find()] == ["a", "b"]
