"""A run's average, batches by tokens, and what its adapter says of itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from radial import ModelError, RequestError
from radial.generation.pipeline import generate
from radial.loading.load import LoadedModel, load
from radial.models.lora_settings import AdapterSettings, read_adapter_settings
from radial.request import make_request
from radial.video.clip import read_frames
from radial_finetune.adapter.form import AdapterForm
from radial_finetune.adapter.place import add_adapter
from radial_finetune.data.cache import read_index
from radial_finetune.objective import WanObjective, find_objective
from radial_finetune.training import assemble, train
from radial_finetune.training.assemble import pattern_of
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import make_config
from radial_finetune.training.exports import digest_of, read_made
from radial_finetune.training.optimizers import make_optimizer
from radial_finetune.training.train import finetune


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]


def assert_same_adapter(one: Path, two: Path) -> None:
    assert read_made(one) == read_made(two)
    a, b = load_file(one), load_file(two)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


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
    file = finetune(
        make_config(**config | {"data": str(two_lengths), "steps": 1, "skip_width": 2, "far_field": "mean"})
    )
    settings = read_adapter_settings(file)
    assert settings is not None
    assert (settings.tuned_frames, settings.target_frames, settings.skip_width) == ((5, 13), 13, 2)
    assert settings.take_over(model.spec, 50)["skip_width"] == 2
    assert settings.take_over(model.spec, 50)["far_field"] == "mean"
    assert pattern_of(model.spec, settings).skip_width == 2
    assert settings.covers(9)
    assert not settings.covers(17)
    assert AdapterSettings(target_frames=129).lengths == (129,)  # a file from before the lengths were written


def test_every_checkpoint_is_an_adapter_to_use(config: dict[str, Any], wan_folder: Path) -> None:
    final = finetune(make_config(**config))
    output = Path(config["output"])
    older, last = (output / name / "adapter.safetensors" for name in ("step-000004", "step-000006"))
    assert_same_adapter(last, final)
    assert read_made(older)["step"] == 4
    request = make_request(prompt="a", model=str(wan_folder), height=32, width=32, seed=1, num_inference_steps=2,
                           loras=[{"path": str(older)}])  # fmt: skip
    notes: list[str] = []
    (clip,) = generate(request, on_event=lambda event: notes.append(event.note) if event.note else None)
    assert len(clip.frames) == 9
    assert notes == ["as the adapter was tuned: 9 frames, decay 1, 1 dense layers"]


def test_the_best_adapter_is_kept(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out loss is made to rise from the fourth step on: the best one is of a step before."""
    plain, reached = train.validate, [0]

    def rising(*args: Any) -> train.HeldOutLoss:
        loss = plain(*args)
        return replace(loss, all=loss.all + max(0, reached[0] - 2))

    def count(progress: train.Progress) -> None:
        reached[0] = progress.step

    monkeypatch.setattr(train, "validate", rising)
    wild = config | {"validate_every": 1}
    finetune(make_config(**wild), on_step=count)
    losses = {line["step"]: line["validation"] for line in lines_of(wild["output"])}
    step = min(losses, key=lambda s: losses[s])
    made = read_made(Path(wild["output"]) / "best" / "adapter.safetensors")
    assert (made["step"], made["held_out_loss"]) == (step, losses[step])
    assert step <= 3
    # A run that is stopped and goes on ends with the same best one.
    halved = make_config(**wild | {"output": str(tmp_path / "halved")})
    reached[0] = 0

    def stop(progress: train.Progress) -> None:
        count(progress)
        if progress.step == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        finetune(halved, on_step=stop)
    reached[0] = 2
    finetune(halved, resume=True, on_step=count)
    assert_same_adapter(*(Path(folder) / "best" / "adapter.safetensors" for folder in (wild["output"], halved.output)))


def test_a_run_begins_from_an_adapter(config: dict[str, Any], tmp_path: Path) -> None:
    """With steps too small to move anything, it ends where it began: norms, alpha and all."""
    first = config | {"norms": True, "alpha": 2.0, "weight_decay": 0.0}
    given = finetune(make_config(**first))
    again = first | {"output": str(tmp_path / "again"), "init_adapter": str(given), "learning_rate": 1e-12, "steps": 1}
    begun = load_file(finetune(make_config(**again)))
    assert all(torch.allclose(value, begun[name], atol=1e-6) for name, value in load_file(given).items())
    made = read_made(tmp_path / "again" / "adapter.safetensors")
    assert made["init_adapter"] == digest_of(given)
    # The same file elsewhere is the same run; another is none.
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(given.read_bytes())
    finetune(make_config(**again | {"init_adapter": str(moved)}), resume=True)
    other = tmp_path / "run" / "step-000004" / "adapter.safetensors"
    with pytest.raises(RequestError, match="is of another run: init_adapter was"):
        finetune(make_config(**again | {"init_adapter": str(other)}), resume=True)


def test_an_adapter_to_begin_from_must_fit(config: dict[str, Any], tmp_path: Path) -> None:
    given = str(finetune(make_config(**config | {"steps": 1})))
    again = config | {"output": str(tmp_path / "again"), "init_adapter": given}
    with pytest.raises(RequestError, match="has rank 4 and this run rank 8; set rank = 4"):
        finetune(make_config(**again | {"rank": 8}))
    with pytest.raises(
        RequestError, match=r"tunes 24 layers and this run 12; only one of them has transformer\.blocks"
    ):
        finetune(make_config(**again | {"layers": "self"}))
    with pytest.raises(ModelError, match="no LoRA file"):
        finetune(make_config(**again | {"init_adapter": "missing.safetensors"}))


def test_steps_and_rate_may_change_and_cache_and_model_move(config: dict[str, Any], tmp_path: Path) -> None:
    """Under a cosine to step 4, then on to step 6 at another rate, from a cache and a model that lie elsewhere."""
    finetune(make_config(**config | {"steps": 4}))
    moved = shutil.copytree(config["data"], tmp_path / "moved")
    model = shutil.copytree(config["model"], tmp_path / "model")
    notes: list[str] = []
    longer = config | {"steps": 6, "learning_rate": 0.005, "data": str(moved), "model": str(model)}
    finetune(make_config(**longer), resume=True, on_note=notes.append)
    assert notes[1:] == [
        "from step 5 on the learning rate is 0.005, not 0.01",
        "from step 5 on the rate falls to zero at step 6, not 4",
    ]
    rates = [line["learning_rate"] for line in lines_of(config["output"]) if line["step"]]
    assert rates[4:] == [train.learning_rate(step, make_config(**longer)) for step in (4, 5)]
    finetune(make_config(**longer | {"steps": 3}), resume=True)  # past its end already: written as it is
    assert read_made(Path(config["output"]) / "adapter.safetensors")["step"] == 6
    # Other weights are another run, though a cache of them may have the same clips.
    checkpoint = max(Path(config["output"]).glob("step-*")) / "run.json"
    run = json.loads(checkpoint.read_text())
    checkpoint.write_text(json.dumps(run | {"config": run["config"] | {"base": "another"}}))
    with pytest.raises(RequestError, match="is of another run: base was 'another'"):
        finetune(make_config(**longer), resume=True)


def test_a_file_stands_on_one_side(two_lengths: Path, model: LoadedModel) -> None:
    index, objective = read_index(two_lengths), find_objective(model.pipe, model.spec)
    sources = [clip.source for clip in index.clips]
    assert max(map(sources.count, sources)) == 2
    for count in (1, 3, 4):
        config = make_config(data=str(two_lengths), output="", held_out=count)
        batches = Batches(config, index, objective)
        assert len(batches.held_out) == count
        assert not {clip.source for clip in batches.train} & {clip.source for clip in batches.held_out}
        assert batches.unused == len(index.clips) - len(batches.train) - count == count % 2
    with pytest.raises(
        RequestError, match=r"held_out is 15, and whole files are held out: none of the 8 .* 14 at most"
    ):
        Batches(make_config(data=str(two_lengths), output="", held_out=15), index, objective)


def test_held_out_clips_are_measured_where_training_is(cache: Path, model: LoadedModel) -> None:
    objective = find_objective(model.pipe, model.spec)
    config = make_config(data=str(cache), output="", held_out=2, shift=5.0, timestep_sampling="uniform")
    batches = Batches(config, read_index(cache), objective)
    levels = [float(batch.sigma) for batch in batches.validation(train.VALIDATION_QUANTILES)]
    assert levels == pytest.approx([5 * u / (1 + 4 * u) for u in train.VALIDATION_QUANTILES] * 2)


def test_weight_decay_leaves_norms_alone(wan: Any) -> None:
    parameters = add_adapter(wan.transformer, WanObjective, AdapterForm(4, 4, norms=True))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = make_optimizer("adamw", parameters, 0.1, 0.5)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        assert torch.allclose(parameter, before[name] * (0.95 if ".lora_" in name else 1.0)), name


def test_generation_takes_the_shift_that_was_chosen(config: dict[str, Any], two_lengths: Path) -> None:
    by_length = config | {"data": str(two_lengths), "steps": 1, "shift": 7.0, "shift_by_length": True}
    settings = read_adapter_settings(finetune(make_config(**by_length)))
    assert settings is not None
    assert settings.flow_shift == 7.0  # 13 frames are within the native 33


def test_a_sample_is_what_generation_makes_with_the_adapter(
    config: dict[str, Any], wan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same prompt, seed, size and steps, of which as many are dense: the same frames, at the authors' shift, which
    the checkpoint's scheduler does not have."""

    def with_a_shift(request: Any) -> LoadedModel:
        model = load(request)
        return replace(model, spec=replace(model.spec, flow_shift=9.0))

    dense: list[int] = []
    apply = assemble.radial.apply

    def note(target: Any, **settings: Any) -> Any:
        dense.append(settings["schedule"].dense_steps)
        return apply(target, **settings)

    monkeypatch.setattr(assemble, "load", with_a_shift)
    monkeypatch.setattr(assemble.radial, "apply", note)
    told = {"prompt": "a red circle", "seed": 5, "num_inference_steps": 4}
    more = {"ema_decay": 0.0, "sample_every": 2, "sample_steps": 40, "sample_prompts": [told], "sample_frames": [13]}
    adapter = finetune(make_config(**config | more | {"steps": 2, "validate_every": 0}))
    made_for, spec = read_adapter_settings(adapter), load(make_request(prompt="a", model=str(wan_folder))).spec
    shares = [spec.dense_share((made_for and made_for.dense_steps) or 0, steps) for steps in (4, 40)]
    assert shares[0] != shares[1]
    assert max(dense) == shares[0]  # of the sample's steps, and not of the run's
    (clip,) = generate(
        make_request(
            **told, model=str(wan_folder), height=32, width=32, num_frames=13, flow_shift=9.0,
            loras=[{"path": str(adapter)}],
        )
    )  # fmt: skip
    wanted = clip.write(Path(config["output"]) / "wanted.mp4")
    sample = Path(config["output"]) / "samples" / "000002-00-13.mp4"
    assert np.array_equal(read_frames(sample), read_frames(wanted))
