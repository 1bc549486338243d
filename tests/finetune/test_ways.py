"""Ways to tune: optimizers, kinds of adapters, noise levels, and the prompts of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from radial import RequestError
from radial.generation.pipeline import generate
from radial.request import make_request
from radial.video.clip import read_frames
from radial_finetune.sample_prompts import parse_sample_prompt, read_sample_prompts
from radial_finetune.training import train
from radial_finetune.training.config import make_config
from radial_finetune.training.optimizers import (
    LEARNING_RATES,
    make_optimizer,
    moments_of,
    numbers_of,
    put_back,
    rate_of,
)
from radial_finetune.training.train import finetune


def stop_after(step: int) -> Any:
    def stop(progress: train.Progress) -> None:
        if progress.step == step:
            raise RuntimeError("power cut")

    return stop


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


WAYS = {
    "adafactor": {"optimizer": "adafactor", "norms": True},
    "prodigy": {"optimizer": "prodigy", "norms": True},
    "dora": {"adapter": "dora", "layers": "blocks", "rslora": True, "alpha": 3.0},
    "lokr": {"adapter": "lokr", "lokr_factor": 4, "alpha": 3.0, "layers": "blocks", "norms": True},
    "levels": {"min_sigma": 0.3, "max_sigma": 0.8, "logit_mean": 0.5, "logit_std": 2.0, "weighting_scheme": "cosmap"},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_goes_on_bit_for_bit_and_lowers_the_loss(way: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Stopped past a checkpoint: weights, average and moments of the end are those of a run that was never stopped."""
    plain = {key: value for key, value in config.items() if key not in ("learning_rate", "lr_scheduler")}
    plain |= {"lr_warmup_steps": 0, "validate_every": 6} | WAYS[way]
    if "optimizer" not in plain:
        plain["learning_rate"] = 1e-2
    both = [plain | {"output": str(tmp_path / name)} for name in ("whole", "cut")]
    finetune(make_config(**both[0]))
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(make_config(**both[1]), on_step=stop_after(3))
    finetune(make_config(**both[1]), resume=True)
    for part in ("adapter", "weights", "average", "moments"):
        one, two = (load_file(tmp_path / name / "step-000006" / f"{part}.safetensors") for name in ("whole", "cut"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), part
    losses = [line["validation"] for line in log_of(tmp_path / "whole") if "validation" in line]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("way", ["dora", "lokr"])
def test_a_run_begins_from_another_ones_file(way: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Its held-out loss before the first step is that of the other at its end."""
    adapter = finetune(make_config(**config | WAYS[way]))
    more = {"output": str(tmp_path / "again"), "init_adapter": str(adapter), "steps": 1}
    finetune(make_config(**config | WAYS[way] | more))
    end = log_of(Path(config["output"]))[-1]["validation"]
    assert log_of(tmp_path / "again")[0]["validation"] == pytest.approx(end, rel=1e-4)
    with pytest.raises(RequestError, match="set adapter, layers and norms as the adapter has them"):
        finetune(make_config(**config | {"output": str(tmp_path / "other"), "init_adapter": str(adapter)}))


@pytest.mark.parametrize("name", LEARNING_RATES)
def test_optimizers_go_on_bit_for_bit(name: Any) -> None:
    """Prodigy's estimate of the rate too, without which it would begin again from nothing."""

    def begin() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
        generator = torch.Generator().manual_seed(0)
        given = {"a": torch.randn(64, 64, generator=generator), "b": torch.zeros(64, 64)}
        if name != "muon":
            given["norm"] = torch.ones(64)
        parameters = {key: torch.nn.Parameter(value) for key, value in given.items()}
        return parameters, make_optimizer(name, parameters, 1.0 if name == "prodigy" else 0.1, 0.01)

    def step(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        sum((p - 3).square().sum() for p in parameters.values()).backward()  # type: ignore[union-attr]
        optimizer.step()

    whole, optimizer = begin()
    for number in range(12):
        if number == 8:
            weights = {key: p.detach().clone() for key, p in whole.items()}
            moments = {key: value.clone() for key, value in moments_of(optimizer, whole).items()}
            numbers = json.loads(json.dumps(numbers_of(optimizer, whole)))
            rate = rate_of(optimizer)
        step(whole, optimizer)
    assert all(not torch.equal(whole[key], weights[key]) for key in whole)
    cut, other = begin()
    for key, parameter in cut.items():
        parameter.data.copy_(weights[key])
    put_back(other, cut, moments, numbers)
    assert rate_of(other) == rate
    for _ in range(4):
        step(cut, other)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert rate_of(other) == rate_of(optimizer)
    assert (rate_of(other) > rate) == (name == "prodigy")


@pytest.mark.parametrize("way", ["dora", "lokr"])
def test_generation_does_what_was_trained(way: str, config: dict[str, Any], wan_folder: Path) -> None:
    adapter = finetune(make_config(**config | WAYS[way] | {"ema_decay": 0.0, "attention": "dense"}))
    common = {"prompt": "a", "model": str(wan_folder), "height": 32, "width": 32, "num_frames": 9, "seed": 1,
              "num_inference_steps": 2, "attention": "dense"}  # fmt: skip
    (plain,) = generate(make_request(**common))
    (tuned,) = generate(make_request(**common, loras=[{"path": str(adapter)}]))
    assert not (plain.frames == tuned.frames).all()


def test_what_does_not_go_together_is_told() -> None:
    own = {"data": "d", "output": "o"}
    assert make_config(**own, optimizer="prodigy").learning_rate == 1.0
    assert make_config(**own, optimizer="came").learning_rate == LEARNING_RATES["came"]
    for more, told in (
        ({"optimizer": "prodigy", "learning_rate": 1e-4}, "prodigy finds the rate by itself.* leave it out for 1"),
        ({"learning_rate": 2.0}, "learning_rate must be at most 1 with adamw, not 2"),
        ({"optimizer": "muon", "norms": True}, "muon is for matrices"),
        ({"optimizer": "muon", "adapter": "dora"}, "muon is for matrices"),
        ({"lokr_factor": 4}, 'lokr_factor is of adapter = "lokr"'),
        ({"adapter": "lokr", "rslora": True}, "rslora is of lora and dora"),
        ({"adapter": "dora", "base_precision": "float8"}, "which float8 has rounded"),
        ({"optimizer": "lion"}, "optimizer 'adamw', .*'prodigy', not 'lion'"),
    ):
        with pytest.raises(RequestError, match=told):
            make_config(**own | more)
    with pytest.raises(RequestError, match="take adamw"):
        make_optimizer("muon", {"norm": torch.nn.Parameter(torch.zeros(3))}, 0.1, 0.0)


def test_a_missing_package_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(
        RequestError, match=r"prodigy needs pytorch-optimizer: pip install 'radial-video\[optimizers\]'"
    ):
        make_optimizer("prodigy", {"a": torch.nn.Parameter(torch.zeros(3, 3))}, 1.0, 0.0)


def test_an_older_run_goes_on_with_what_was_the_rule_then(config: dict[str, Any]) -> None:
    """Its checkpoint names none of the settings that came later."""
    finetune(make_config(**config | {"steps": 2}))
    run = Path(config["output"]) / "step-000002" / "run.json"
    written = json.loads(run.read_text())
    for later in ("adapter", "rslora", "min_sigma", "weighting_scheme", "shifts"):
        del written["config"][later]
    del written["numbers"]
    run.write_text(json.dumps(written))
    notes: list[str] = []
    finetune(make_config(**config), resume=True, on_note=notes.append)
    assert any("began before its noise shift was written down" in note for note in notes)
    with pytest.raises(RequestError, match="weighting_scheme was 'none' and is 'cosmap'"):
        finetune(make_config(**config | {"weighting_scheme": "cosmap", "steps": 8}), resume=True)


def test_prompts_of_samples_bring_their_own_settings(config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# of musubi-tuner\n\na red circle --w 48 --h 32 --f 5 --d 7 --s 1 --n blurry, dark\na square\n")
    settings = config | {"sample_every": 6, "sample_prompts": str(file), "sample_frames": [9], "sample_steps": 1}
    finetune(make_config(**settings | {"steps": 6}))
    made = sorted((Path(config["output"]) / "samples").glob("*.mp4"))
    assert [path.name for path in made] == [
        "000000-00-5.mp4", "000000-01-9.mp4", "000006-00-5.mp4", "000006-01-9.mp4"
    ]  # fmt: skip
    assert read_frames(made[0]).shape[:3] == (5, 32, 48)


def test_prompts_of_samples_are_read_and_checked(tmp_path: Path, config: dict[str, Any]) -> None:
    told = parse_sample_prompt("a fox, quick -- and red --d 3 --g 4.5".replace(" -- and", " and"))
    assert (told.prompt, told.seed, told.guidance_scale, told.negative_prompt) == ("a fox, quick and red", 3, 4.5, None)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "seed": 3, "height": 32}\n{"prompt": "b", "negative_prompt": ""}\n')
    one, two = read_sample_prompts(file)
    assert (one.height, two.negative_prompt, two.seed) == (32, "", None)
    for text, message in (
        ('{"prompt": "a", "steps": 3}', r"prompts.jsonl:1: steps: Extra inputs"),
        ("[1]", "must be an object"),
        ("{", "no JSON"),
        ("", "has 0 prompts"),
        ('{"prompt": ""}', "prompt: String should have at least 1 character"),
    ):
        file.write_text(text)
        with pytest.raises(RequestError, match=message):
            read_sample_prompts(file)
    with pytest.raises(RequestError, match="--zz is not known behind a prompt: --w width"):
        make_config(data="", output="", sample_prompts=["a fox --zz 3"])
    with pytest.raises(RequestError, match=r"cannot read .*: No such file"):
        make_config(data="", output="", sample_prompts=str(tmp_path / "none.txt"))
    with pytest.raises(RequestError, match="height must be a multiple of"):  # before anything is trained
        finetune(make_config(**config | {"sample_every": 1, "sample_prompts": ["a --h 33 --w 32"]}))
