"""A run's average, batches by tokens, and what its adapter says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from radial import RequestError
from radial.loading.load import LoadedModel
from radial.models.lora_settings import AdapterSettings, read_adapter_settings
from radial_finetune.data.cache import read_index
from radial_finetune.objective import find_objective
from radial_finetune.training import train
from radial_finetune.training.assemble import pattern_of
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import make_config
from radial_finetune.training.train import finetune


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]


def test_an_average_follows_a_short_run(config: dict[str, Any]) -> None:
    """At a decay of 0.999 the weights of a run of six steps are not those of its first step."""
    adapter = load_file(finetune(make_config(**config | {"ema_decay": 0.999, "lr_warmup_steps": 0})))
    average = load_file(Path(config["output"]) / "step-000006" / "average.safetensors")
    grown = {name: value for name, value in average.items() if ".lora_B." in name}
    assert all(float(value.abs().max()) > 1e-3 for value in grown.values())
    assert all(torch.isfinite(value).all() for value in adapter.values())


def test_what_is_exported_is_what_is_validated(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out loss is of the averaged weights, and the step's own are back after it."""
    during: list[dict[str, torch.Tensor]] = []
    plain = train.validate

    def watched(objective: Any, transformer: Any, *rest: Any) -> Any:
        during.append({n: p.detach().clone() for n, p in transformer.named_parameters() if ".lora_" in n})
        return plain(objective, transformer, *rest)

    monkeypatch.setattr(train, "validate", watched)
    finetune(make_config(**config))
    last = Path(config["output"]) / "step-000006"
    average = load_file(last / "average.safetensors")
    assert all(torch.equal(during[-1][name], value) for name, value in average.items())
    trained = load_file(next(f for f in (last / "weights.safetensors", last / "adapter.safetensors") if f.exists()))
    assert not all(torch.equal(during[-1][name], trained[name]) for name in trained if name in average)


def test_a_batch_holds_as_many_clips_as_fit(two_lengths: Path, model: LoadedModel) -> None:
    """5 frames of 32 x 32 are 8 tokens, 13 frames 16."""
    index, objective = read_index(two_lengths), find_objective(model.pipe, model.spec)
    config = make_config(data=str(two_lengths), output="", steps=20, batch_tokens=24)
    batches = Batches(config, index, objective)
    sizes = {(batch.bucket.num_frames, len(batch.latents)) for batch in batches.iterate(0)}
    assert sizes == {(5, 3), (13, 1)}
    small = Batches(config.model_copy(update={"batch_tokens": 1}), index, objective)
    assert {len(batch.latents) for batch in small.iterate(0)} == {1}
    assert torch.equal(batches.read(7).noise, Batches(config, index, objective).read(7).noise)
    with pytest.raises(RequestError, match="batch_tokens and batch_size say the same"):
        make_config(data="", output="", batch_tokens=24, batch_size=2)


def test_batches_by_tokens_go_on_bit_for_bit(config: dict[str, Any], two_lengths: Path, tmp_path: Path) -> None:
    def stop(progress: train.Progress) -> None:
        if progress.step == 3:
            raise RuntimeError("power cut")

    common = config | {"data": str(two_lengths), "batch_tokens": 24, "batch_size": 1}
    runs = [make_config(**common | {"output": str(tmp_path / name)}) for name in ("whole", "halved")]
    whole = load_file(finetune(runs[0]))
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(runs[1], on_step=stop)
    halved = load_file(finetune(runs[1], resume=True))
    assert all(torch.equal(whole[name], halved[name]) for name in whole)


def test_an_adapter_says_its_pattern_and_lengths(config: dict[str, Any], two_lengths: Path, model: LoadedModel) -> None:
    file = finetune(make_config(**config | {"data": str(two_lengths), "steps": 1, "skip_width": 2}))
    settings = read_adapter_settings(file)
    assert settings is not None
    assert (settings.tuned_frames, settings.target_frames, settings.skip_width) == ((5, 13), 13, 2)
    assert settings.take_over(model.spec, 50)["skip_width"] == 2
    assert pattern_of(model.spec, settings).skip_width == 2
    assert settings.covers(9)
    assert not settings.covers(17)
    assert AdapterSettings(target_frames=129).lengths == (129,)  # a file from before the lengths were written
