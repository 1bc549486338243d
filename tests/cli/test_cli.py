"""The command line as a user meets it: exit codes, one line on stderr, no file left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from radial.models.table import MODELS
from radial.video.clip import read_frames, read_receipt
from radial_app.cli import main as cli
from radial_app.cli.doctor import EXTRAS
from radial_app.jobs.store import JobStore

QUICK = ["--height", "32", "--width", "48", "--num-frames", "5", "--num-inference-steps", "2"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def quick(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """``generate`` with a few small frames; returns exit code, stdout, stderr."""

    def generate(*arguments: str) -> tuple[int, str, str]:
        return run(capsys, "generate", "a red circle", *QUICK, *arguments)

    return generate


def test_a_video_of_the_asked_size(quick: Any) -> None:
    code, out, err = quick("--output", "a.mp4", "--seed", "5", "--fps", "12")
    assert code == 0, err
    assert out == "a.mp4\n"
    assert "% of attention computed" in err
    assert read_frames(Path("a.mp4")).shape == (5, 32, 48, 3)
    receipt = read_receipt(Path("a.mp4"))
    request = receipt["request"]
    assert (request["prompt"], request["seed"], request["fps"]) == ("a red circle", 5, 12)
    assert receipt["attention"]["kind"] == "radial"
    assert 0 < receipt["attention"]["computed_share"] <= 1
    assert len(receipt["model"]["fingerprint"]) == 16
    assert receipt["model"]["revision"] is None
    assert {"encode", "denoise", "decode"} == set(receipt["seconds"])


def test_same_seed_same_frames(quick: Any) -> None:
    for name in ("a.mp4", "b.mp4"):
        assert quick("--output", name, "--seed", "5")[0] == 0
    assert quick("--output", "c.mp4", "--seed", "6")[0] == 0
    assert np.array_equal(read_frames(Path("a.mp4")), read_frames(Path("b.mp4")))
    assert not np.array_equal(read_frames(Path("a.mp4")), read_frames(Path("c.mp4")))


def test_several_videos_count_their_seeds(quick: Any) -> None:
    code, out, err = quick("--num_videos", "2", "--seed", "8", "--quiet")
    assert code == 0
    assert err == ""
    paths = [Path(line) for line in out.split()]
    assert [path.name for path in paths] == ["a-red-circle-8.mp4", "a-red-circle-9.mp4"]
    assert [read_receipt(path)["request"]["seed"] for path in paths] == [8, 9]
    alone = quick("--seed", "9", "--output", "alone.mp4")
    assert alone[0] == 0
    assert np.array_equal(read_frames(paths[1]), read_frames(Path("alone.mp4")))


def test_json_is_one_object_a_video(quick: Any) -> None:
    code, out, err = quick("--json", "--attention", "dense", "--seed=-1")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert Path(result["path"]).exists()
    assert result["receipt"]["request"]["seed"] >= 0
    assert result["receipt"]["attention"] == {"kind": "dense", "computed_share": 1.0}


def test_underscores_and_dashes_are_the_same(quick: Any) -> None:
    assert quick("--guidance_scale=2.5", "--dense_layers", "0", "--output", "a.mp4")[0] == 0
    assert read_receipt(Path("a.mp4"))["request"]["guidance_scale"] == 2.5


def test_defaults_never_overwrite(quick: Any) -> None:
    outs = [quick("--seed", "1", "--quiet")[1].strip() for _ in range(2)]
    assert outs == ["outputs/a-red-circle-1.mp4", "outputs/a-red-circle-1-2.mp4"]


def test_a_folder_checkpoint(quick: Any, wan_folder: Path) -> None:
    code, _, err = quick("--model", str(wan_folder), "--output", "a.mp4")
    assert code == 0, err


def wrong_lora(path: Path) -> Path:
    save_file({"unrelated.lora_A.weight": torch.zeros(4, 8), "unrelated.lora_B.weight": torch.zeros(8, 4)}, path)
    return path


def test_a_lora_acts_with_its_weight(quick: Any, wan_folder: Path, tmp_path: Path) -> None:
    from diffusers import WanPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    pipe = WanPipeline.from_pretrained(wan_folder)
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.transformer)
    WanPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers)
    file = next((tmp_path / "lora").glob("*.safetensors"))
    base = ["--model", str(wan_folder), "--seed", "1"]
    assert quick(*base, "--output", "plain.mp4")[0] == 0
    assert quick(*base, "--output", "off.mp4", "--lora", f"{file}:0")[0] == 0
    code, _, err = quick(*base, "--output", "on.mp4", "--lora", f"{file}:2")
    assert code == 0, err
    plain, off, on = (read_frames(Path(f"{name}.mp4")) for name in ("plain", "off", "on"))
    assert np.array_equal(plain, off)
    assert not np.array_equal(plain, on)
    assert read_receipt(Path("on.mp4"))["request"]["loras"] == [{"path": str(file), "weight": 2.0}]


def test_sizes_presets_and_positions(quick: Any, wan_folder: Path) -> None:
    code, _, err = quick(
        "--model", str(wan_folder), "--snap", "--height", "30", "--preset", "4-step", "--num-inference-steps", "1",
        "--riflex", "--output", "a.mp4",
    )  # fmt: skip
    assert code == 0, err
    request = read_receipt(Path("a.mp4"))["request"]
    assert (request["height"], request["num_inference_steps"], request["guidance_scale"]) == (32, 1, 1.0)
    assert (request["sampler"], request["flow_shift"], request["riflex"]) == ("lcm", 5.0, True)


def test_what_steps_leave_out_is_said(quick: Any, capsys: pytest.CaptureFixture[str], wan_folder: Path) -> None:
    base = ["--model", str(wan_folder), "--seed", "1", "--num-inference-steps", "10"]
    code, _, err = quick(*base, "--cache", "fast", "--guidance-end", "0.5", "--output", "a.mp4")
    assert code == 0, err
    receipt = read_receipt(Path("a.mp4"))
    skipped = receipt["cache"]["skipped"]
    assert skipped > 0
    assert f"{skipped:.0%} of the transformer's calls left out by First Block Cache" in " ".join(err.split())
    assert receipt["guidance"] == {"first_step": 0, "guided_steps": 5, "steps": 10}
    code, _, err = quick("--model", str(wan_folder), "--cache", "auto", "--preset", "4-step")
    assert code == 2
    assert "--cache auto is for 10 steps or more, not 2" in " ".join(err.split())
    code, _, err = quick(*base, "--guidance-start", "0.95", "--guidance-end", "0.99")
    assert (code, "leave none of the 10 steps guided" in " ".join(err.split())) == (2, True)
    told = {}
    for name, options in {"whole": [], "half": ["--guidance-end", "0.5"], "cache": ["--cache", "auto"]}.items():
        code, out, err = run(capsys, "estimate", "--model", "wan2.1-1.3b", *options, "--json")
        assert code == 0, err
        told[name] = json.loads(out)
    assert 0.7 < told["half"]["seconds_on_h100"] / told["whole"]["seconds_on_h100"] < 0.8
    assert told["cache"]["seconds_on_h100"] is None  # the clip decides how much it leaves out
    assert told["cache"]["memory"]["full"]["gpu"] >= told["whole"]["memory"]["full"]["gpu"]


def test_notes_are_said_once_on_stderr(quick: Any, wan_folder: Path) -> None:
    code, out, err = quick("--model", str(wan_folder), "--num-frames", "37", "--output", "long.mp4")
    assert code == 0, err
    assert " ".join(err.split()).count("note: 37 frames are beyond the 33") == 1
    assert "note" not in out


def test_a_clip_that_fails_in_decoding_goes_on_from_its_latents(
    quick: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    assert quick("--output", "plain.mp4", "--seed", "3")[0] == 0
    with monkeypatch.context() as broken:

        def fail(*_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

        broken.setattr(AutoencoderKLWan, "decode", fail)
        code, _, err = quick("--output", "a.mp4", "--seed", "3")
    assert code == 1
    assert "out of memory on cpu in stage decode" in " ".join(err.split())
    job = re.search(r"`radial jobs run (\w+)` goes on", " ".join(err.split()))
    assert job is not None
    calls: list[Any] = []
    plain_forward = WanTransformer3DModel.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return plain_forward(*args, **kwargs)

    monkeypatch.setattr(WanTransformer3DModel, "forward", counted)
    code, out, err = run(capsys, "jobs", "run", job[1])
    assert (code, out) == (0, "a.mp4\n"), err
    assert calls == []
    assert np.array_equal(read_frames(Path("a.mp4")), read_frames(Path("plain.mp4")))


WRONG: dict[str, tuple[list[str], int, str]] = {
    "size": (["--height", "100"], 2, "nearest are 96 and 112"),
    "frames": (["--num-frames", "32"], 2, "nearest are 29 and 33"),
    "no steps": (["--num-inference-steps", "0"], 2, "--num-inference-steps must be"),
    "negative steps": (["--num-inference-steps", "-4", "--seed", "-5"], 2, "; --seed must be"),
    "a word for a number": (["--height", "tall"], 2, "height"),
    "unknown option": (["--colour", "red"], 2, "No such option"),
    "unknown attention": (["--attention", "sparse"], 2, "attention"),
    "unknown model": (["--model", "wan9"], 2, "give one of `radial models`"),
    "not a checkpoint": (["--model", "."], 1, "no model_index.json"),
    "no such device": (["--device", "cuda:7"], 2, "no device 'cuda:7' here"),
    "existing file": (["--output", "taken.mp4"], 2, "taken.mp4 exists; pass --overwrite"),
    "no video": (["--output", "a.avi"], 2, "must end in .mp4, .webm or .gif"),
    "format and name": (["--output", "a.mp4", "--format", "gif"], 2, "must end in .gif"),
    "codec and format": (["--output", "a.mp4", "--codec", "vp9"], 2, "--codec vp9 goes into webm"),
    "quality": (["--crf", "70"], 2, "--crf must be"),
    "unwritable": (["--output", "taken.mp4/a.mp4"], 1, "cannot write"),
    "missing lora": (["--lora", "none.safetensors"], 1, "no LoRA file"),
    "pickled lora": (["--lora", "a.pt"], 1, "safetensors only"),
    "lora weight": (["--lora", "a.safetensors:strong"], 2, "FILE:WEIGHT"),
    "no image": (["--image", "none.png"], 2, "image: no such file"),
    "no model from images": (["--image", "there.png"], 2, "does not start from an image"),
    "unknown preset": (["--preset", "fast"], 2, "there is 4-step"),
    "unknown fit": (["--image-fit", "zoom"], 2, "image-fit"),
    "lora of another model": (["--lora", "wrong.safetensors"], 1, "does not fit this model"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_line(quick: Any, name: str) -> None:
    arguments, expected, message = WRONG[name]
    Path("taken.mp4").write_text("kept")
    wrong_lora(Path("wrong.safetensors"))
    Image.new("RGB", (48, 32)).save("there.png")
    code, out, err = quick(*arguments)
    assert code == expected, err
    assert message in err
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert Path("taken.mp4").read_text() == "kept"
    assert sorted(os.listdir()) == ["taken.mp4", "there.png", "wrong.safetensors"]


def test_an_empty_prompt(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "generate", "  ")
    assert code == 2
    assert "prompt must not be empty" in err


def copy_of(wan_folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(wan_folder, target))


def test_a_corrupt_checkpoint(quick: Any, wan_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(wan_folder, tmp_path / "broken")
    weights = next((folder / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = quick("--model", str(folder), "--output", "a.mp4")
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot load" in err
    assert not Path("a.mp4").exists()


def test_latents_that_are_no_numbers(quick: Any, wan_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = copy_of(wan_folder, tmp_path / "nan")
    weights = next((folder / "transformer").glob("*.safetensors"))
    state = load_file(weights)
    state["proj_out.bias"] = torch.full_like(state["proj_out.bias"], float("nan"))
    save_file(state, weights)
    code, _, err = quick("--model", str(folder), "--output", "a.mp4")
    assert code == 1
    assert "stopped being numbers at step 1 of 2" in err
    assert not Path("a.mp4").exists()


def test_debug_shows_the_traceback(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "generate", "a", "--height", "100", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "nearest are 96 and 112" in err


def test_the_path_is_on_stdout_also_when_progress_is_live(in_empty_folder: Path) -> None:
    """stderr is a terminal, stdout a pipe: as in ``file=$(radial generate ...)``."""
    terminal, ours = os.openpty()
    command = [sys.executable, "-m", "radial_app", "generate", "a red circle", *QUICK, "--seed", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=ours, text=True)
    os.close(ours)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    out, _ = process.communicate(timeout=1800)
    assert process.returncode == 0
    assert out == "outputs/a-red-circle-1.mp4\n"
    assert b"denoising" in shown
    assert b"decoding frames" in shown


def test_ctrl_c_stops_cleanly(in_empty_folder: Path, data_folder: Path) -> None:
    command = [sys.executable, "-m", "radial_app", "generate", "a red circle", "--num-inference-steps", "900"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with JobStore(data_folder) as store:
        while not any(job.step for job in store.find(["running"])):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 130
    assert out == ""
    assert "stopped" in err
    assert "Traceback" not in err
    assert list(in_empty_folder.rglob("*.mp4")) == []


def test_inspect_draws_the_plan(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", "--model", "wan2.1-14b", "--output", "plan.png", "--num_frames", "69")
    assert code == 0, err
    assert "density" in out
    assert "speed-up" in out
    with Image.open("plan.png") as picture:
        assert picture.width > 800
        assert len(set(picture.convert("RGB").get_flattened_data())) > 20
    assert run(capsys, "inspect", "--output", "plan.png")[0] == 2
    assert run(capsys, "inspect", "--output", "plan.png", "--overwrite")[0] == 0


def test_models_receipt_and_version(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert all(name in out for name in MODELS)
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert run(capsys)[2].count("error") == 0  # bare radial shows its help
    assert re.fullmatch(r"radial \d+\.\d+\.\d+\n", out)
    code, _, err = run(capsys, "receipt", "none.mp4")
    assert code == 1
    assert "no such file" in err


def test_an_estimate_says_what_a_clip_takes(capsys: pytest.CaptureFixture[str], wan_folder: Path) -> None:
    code, out, _ = run(capsys, "estimate", "--model", str(wan_folder), "--num-frames", "33", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["num_frames"], told["download"]) == (33, 0)
    assert told["memory"]["full"]["gpu"] > told["memory"]["lowest"]["gpu"] > 0
    assert 0 < told["attention_computed"] <= 1
    code, out, _ = run(capsys, "estimate", "--num-frames", "65")
    assert code == 0
    assert "65 frames" in out
    assert "lowest" in out
    # A model of the hub that is not here, without the hub: what can be said is said.
    code, out, _ = run(capsys, "estimate", "--model", "wan2.1-14b")
    assert code == 0
    assert "on this machine's CPU: 1" in out  # 119 GB: what a named model holds is known without it
    assert "download: unknown" in out
    code, out, _ = run(capsys, "estimate", "--model", "wan2.2-a14b", "--json")
    assert json.loads(out)["memory"]["full"]["gpu"] > 80e9 > json.loads(out)["memory"]["low"]["gpu"]
    code, _, err = run(capsys, "estimate", "--num-frames", "34")
    assert (code, "--num-frames must be a multiple of 4" in err) == (2, True)


def test_an_adapter_is_accounted_for_without_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = ("blocks.0.self_attn.q", "blocks.3.cross_attn.k_img")
    tensors = {f"diffusion_model.{name}.{part}.weight": torch.zeros(shape, dtype=torch.bfloat16)
               for name in names for part, shape in (("lora_A", (2, 5120)), ("lora_B", (5120, 2)))}  # fmt: skip
    save_file(tensors, tmp_path / "style_high_noise.safetensors")
    code, out, _ = run(capsys, "lora", str(tmp_path / "style_high_noise.safetensors"), "--json")
    told = json.loads(out)
    assert (code, told["rank"], told["holds"]) == (0, "2", "LoRA")
    assert told["noise"].startswith("for the high-noise transformer")
    assert told["models"]["wan2.1-i2v-14b-480p"]["left_out"] == {}
    assert set(told["models"]["wan2.2-a14b"]["left_out"].values()) == {"no such layer in this model"}
    code, out, _ = run(capsys, "lora", str(tmp_path / "style_high_noise.safetensors"), "--model", "wan2.2-i2v-a14b")
    assert (code, "1 of its 2 layers act; left out: blocks.3.cross_attn.k_img" in " ".join(out.split())) == (0, True)
    code, _, err = run(capsys, "lora", str(tmp_path / "style_high_noise.safetensors"), "--model", "hunyuan-video")
    assert (code, "does not fit this model" in err) == (1, True)
    code, out, _ = run(capsys, "lora", "bundled:tiny-long", "--json")  # of a model that comes with the package, too
    assert (code, "tiny" in json.loads(out)["models"]) == (0, True)


def test_the_doctor_knows_every_extra() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(declared["optional-dependencies"]) - {"dev"}


def test_a_model_is_examined_before_it_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", "--model", "cosmos-1.0-7b", "--json")
    told = {one["what"]: (one["verdict"], one["value"]) for one in json.loads(out)}
    assert told["terms"][0] == "note"
    lacking = importlib.util.find_spec("cosmos_guardrail") is None
    assert (told["packages"][0] == "problem") == lacking
    assert code == (1 if lacking or told["memory"][0] == "problem" else 0)
    code, out, _ = run(capsys, "doctor", "--model", "tiny", "--json")
    assert {one["what"]: one["verdict"] for one in json.loads(out)}["memory"] == "ok"
