"""Clips in few steps: windows, what the frozen model teaches, a run, and what generation takes over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import CASES, FRAMES, HEIGHT, WIDTH, WORDS
from torch import Tensor

from radial import RequestError
from radial.advice import advise
from radial.generation.pipeline import generate
from radial.generation.sampler import replaced, scheduler_for
from radial.loading.load import LoadedModel, load
from radial.models.find import find_model
from radial.models.lora_settings import read_adapter_settings
from radial.models.table import MODELS
from radial.request import make_request
from radial_finetune.adapter.file import write_adapter
from radial_finetune.adapter.form import AdapterForm
from radial_finetune.adapter.place import add_adapter, switched_off
from radial_finetune.data.cache import read_index
from radial_finetune.noise import Windows
from radial_finetune.objective import StepDistillation, find_objective
from radial_finetune.training import train
from radial_finetune.training.assemble import check_levels
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import make_config
from radial_finetune.training.preflight import forecast
from radial_finetune.training.train import finetune

FAMILIES = {"wan": "wan2.1-1.3b", "wan22-ti2v": "wan2.2-ti2v-5b", "hunyuan-video": "hunyuan-video"}
SCALE = 4.0


@pytest.mark.parametrize("steps", [2, 4, 7])
def test_windows_are_the_steps_of_the_sampler(steps: int) -> None:
    windows = Windows(steps, 5.0)
    pipe = SimpleNamespace(scheduler=CASES["wan"].build().scheduler)
    scheduler = scheduler_for(pipe, "euler", 5.0)
    scheduler.set_timesteps(steps)
    assert torch.allclose(windows.levels(), scheduler.sigmas, atol=1e-6)
    assert torch.equal(windows.levels(3)[::3], windows.levels())
    drawn = windows.draw(20_000, torch.Generator().manual_seed(0))
    starts = torch.isin(drawn, windows.levels()[:-1])
    assert float(starts.float().mean()) == pytest.approx(0.5, abs=0.02)
    counts = torch.bincount(windows.starting_at(drawn), minlength=steps) / len(drawn)
    assert counts.tolist() == pytest.approx([1 / steps] * steps, abs=0.02)
    levels = windows.levels()
    for number in range(steps):  # a window has its start, and not its end
        inside = torch.tensor([levels[number], (levels[number] + levels[number + 1]) / 2])
        assert windows.starting_at(inside).tolist() == [number, number]


def test_windows_of_an_expert_end_where_experts_take_turns() -> None:
    with pytest.raises(RequestError, match=r"goes across 0.875, where .* shift = 6.993 has a step end there"):
        Windows(4, 5.0, (0.875, 1.0))
    high, low = (Windows(4, 6.993, span) for span in ((0.875, 1.0), (0.0, 0.875)))
    generator = torch.Generator().manual_seed(0)
    assert set(high.starting_at(high.draw(500, generator)).tolist()) == {0, 1}
    assert set(low.starting_at(low.draw(500, generator)).tolist()) == {2, 3}


def built(family: str) -> tuple[Any, Any]:
    pipe = CASES[family].build()
    pipe.set_progress_bar_config(disable=True)
    own = find_objective(pipe, replace(MODELS[FAMILIES[family]], max_sequence_length=WORDS))
    add_adapter(pipe.transformer, own, AdapterForm(4, 4.0))
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    pipe.transformer.eval()
    return pipe, own


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_is_the_pipeline_with_guidance_and_without_the_adapter(family: str) -> None:
    """Two windows of three steps, one after the other, are diffusers' own six steps."""
    pipe, own = built(family)
    by_input = own.guides_by_input(pipe.transformer.config)
    texts = [own.stack_text([text]) for text in own.encode_text(["a red circle", "grey"])]
    loss = StepDistillation(own, Windows(2, 5.0), 3, SCALE, {} if by_input else texts[1], switched_off)
    told = own.prompt_arguments(*texts) | {
        "height": HEIGHT, "width": WIDTH, "num_frames": FRAMES, "num_inference_steps": 6, "guidance_scale": SCALE,
        "output_type": "latent", "return_dict": False,
    }  # fmt: skip
    shape = tuple(pipe(**told | {"num_inference_steps": 1})[0].shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with replaced(pipe, scheduler=scheduler_for(pipe, "euler", 5.0)), switched_off(pipe.transformer):
        expected = pipe(**told, latents=noise)[0]
    with replaced(pipe, scheduler=scheduler_for(pipe, "euler", 5.0)):
        adapted = pipe(**told, latents=noise)[0]
    found = noise
    for window in range(2):
        found = loss.cross(pipe.transformer, found, texts[0], torch.tensor([window]))
    assert torch.allclose(found, expected, atol=2e-4, rtol=1e-3)
    assert float((adapted - expected).abs().max()) > 0.01  # it was on, and is again


def test_the_student_learns_the_straight_way_across(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that answers with the velocity from each window's start to where the teacher goes has no loss, wherever
    in the window it is asked; another has. No gradient comes through the teacher."""
    pipe, own = built("wan")
    text = own.stack_text(own.encode_text(["a red circle", "a blue square"]))
    negative = own.stack_text(own.encode_text(["grey"]))
    windows = Windows(4, 3.0)
    loss = StepDistillation(own, windows, 2, SCALE, negative, switched_off)
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, 16, 2, 4, 4, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.83, 0.3])
    losses = loss(pipe.transformer, x, text, noise, sigma)
    assert losses.shape == (2, 2)
    losses.mean().backward()
    gradients = {n: p.grad for n, p in pipe.transformer.named_parameters() if p.requires_grad}
    assert all(g is not None and float(g.abs().max()) > 0 for g in gradients.values())

    levels = windows.levels()
    start, end = (torch.tensor([levels[k + i] for k in (1, 3)]).view(-1, 1, 1, 1, 1) for i in (0, 1))
    begun = (1 - start) * x + start * noise
    ended = loss.cross(pipe.transformer, begun, text, torch.tensor([1, 3]))
    straight = (begun - ended) / (start - end)
    asked: list[Tensor] = []

    def perfect(_transformer: Any, noisy: Tensor, *_: Any) -> Tensor:
        asked.append(noisy)
        return straight

    plain = own.predict
    monkeypatch.setattr(
        type(own), "predict", lambda self, *args: (perfect if torch.is_grad_enabled() else plain)(*args)
    )
    assert float(loss(pipe.transformer, x, text, noise, sigma).max()) < 1e-9
    share = ((start - sigma.view(-1, 1, 1, 1, 1)) / (start - end)).float()
    assert torch.allclose(asked[-1], torch.lerp(begun, ended, share), atol=1e-5)


@pytest.fixture
def distil(config: dict[str, Any]) -> dict[str, Any]:
    return config | {
        "objective": "step_distillation", "num_inference_steps": 3, "teacher_steps": 2, "guidance_scale": 3.0,
        "shift": 4.0, "steps": 14, "validate_every": 14, "checkpoint_every": 5, "held_out": 1,
    }  # fmt: skip


def test_a_run_distils_goes_on_and_generates_in_its_steps(
    distil: dict[str, Any], wan_folder: Path, tmp_path: Path
) -> None:
    file = finetune(make_config(**distil))
    log = [json.loads(line) for line in (Path(distil["output"]) / "log.jsonl").read_text().splitlines()]
    held_out = {line["step"]: line["validation"] for line in log if "validation" in line}
    print(held_out)
    assert held_out[14] < 0.95 * held_out[0]

    def stop(progress: train.Progress) -> None:
        if progress.step == 8:
            raise RuntimeError("power cut")

    again = make_config(**distil | {"output": str(tmp_path / "again")})
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(again, on_step=stop)
    one, two = load_file(file), load_file(finetune(again, resume=True))
    assert all(torch.equal(one[name], two[name]) for name in one)

    request = make_request(prompt="a red circle", model=str(wan_folder), height=32, width=32, seed=1,
                           negative_prompt="grey", loras=[{"path": str(file)}])  # fmt: skip
    resolved = request.resolve()
    assert (resolved.num_inference_steps, resolved.sampler, resolved.guidance_scale) == (3, "euler", 1.0)
    assert (resolved.flow_shift, resolved.attention, resolved.dense_steps) == (4.0, "radial", 0)
    model = load(resolved)
    calls: list[tuple[int, float]] = []

    def count(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        calls.append((len(kwargs["hidden_states"]), float(kwargs["timestep"].flatten()[0])))

    model.pipe.transformer.register_forward_pre_hook(count, with_kwargs=True)
    notes: list[str] = []
    (clip,) = generate(resolved, model=model, on_event=lambda event: notes.append(event.note) if event.note else None)
    assert len(clip.frames) == 9
    assert [size for size, _ in calls] == [1, 1, 1]  # a pass a step, and none without the prompt
    levels = Windows(3, 4.0).levels()[:-1]
    assert [timestep / 1000 for _, timestep in calls] == pytest.approx(levels.tolist(), abs=1e-6)
    assert "as the adapter was tuned: 9 frames, decay 1, 1 dense layers, flow shift 4, 3 steps" in notes

    with pytest.raises(RequestError, match="cache fast is for 10 steps or more, not 3"):
        request.with_values(cache="fast").resolve()
    with pytest.raises(RequestError, match="cache auto is not for an adapter that was distilled to 3 steps"):
        request.with_values(cache="auto", num_inference_steps=20).resolve()
    asked = request.with_values(num_inference_steps=8, sampler="model").resolve()
    assert (asked.num_inference_steps, asked.sampler, asked.guidance_scale) == (8, "model", 1.0)
    told = "the adapter was distilled to num_inference_steps 3, sampler euler: at others expect worse"
    assert told in advise(asked, find_model(str(wan_folder)))


def test_steps_are_taken_over_from_whichever_adapter_says_them(tmp_path: Path) -> None:
    """A style first, which says its length and shift, and an adapter of few steps after it; of two experts."""
    style = write_adapter(tmp_path / "style.safetensors", {"x.lora_A.weight": torch.zeros(1, 1)},
                          {"target_frames": 161, "flow_shift": 9.0, "decay": 0.5})  # fmt: skip
    few = {"num_inference_steps": 4, "sampler": "euler", "guidance_scale": 1.0, "flow_shift": 6.993, "dense_steps": 0}
    steps = write_adapter(tmp_path / "few.safetensors", {"x.lora_A.weight": torch.zeros(1, 1)}, few)
    request = make_request(prompt="a", model="wan2.2-a14b", loras=[{"path": str(style)}, {"path": str(steps)}])
    found = request.resolve()
    assert (found.num_frames, found.decay, found.flow_shift, found.num_inference_steps) == (161, 0.5, 6.993, 4)
    assert (found.sampler, found.guidance_scale, found.guidance_scale_2, found.dense_steps) == ("euler", 1.0, 1.0, 0)
    assert found.resolve() == found
    plain = make_request(prompt="a", model="wan2.2-a14b", loras=[{"path": str(style)}]).resolve()
    assert (plain.sampler, plain.num_inference_steps, plain.guidance_scale_2) == ("model", 40, 3.0)


def test_what_cannot_be_distilled_is_refused(distil: dict[str, Any], model: LoadedModel) -> None:
    for changes, told in (
        ({"objective": "flow_matching"}, 'num_inference_steps is of objective = "step_distillation"'),
        ({"num_inference_steps": 1}, "num_inference_steps greater than or equal to 2, not 1"),
        ({"caption_dropout": 0.1}, "caption_dropout is for guidance"),
        ({"norms": True}, "norms cannot be switched off"),
        ({"sample_steps": 20}, "samples are made in the 3 steps"),
        ({"min_sigma": 0.5}, "min_sigma is of flow_matching"),
        ({"weighting_scheme": "cosmap"}, "weighting_scheme is of flow_matching"),
    ):
        with pytest.raises(RequestError, match=told):
            make_config(**distil | changes)
    defaults = make_config(data="", output="", objective="step_distillation")
    assert (defaults.num_inference_steps, defaults.teacher_steps, defaults.caption_dropout) == (4, 5, 0.0)
    mochi = SimpleNamespace(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(RequestError, match="which chooses its noise levels by itself"):
        check_levels(mochi, Windows(4, 1.0))
    assert forecast(make_config(**distil)).seconds > 0  # and told beforehand, the teacher's passes among them


def test_steps_are_the_same_for_clips_of_every_length(
    distil: dict[str, Any], two_lengths: Path, model: LoadedModel
) -> None:
    config = make_config(**distil | {"data": str(two_lengths), "shift": None, "shift_by_length": True})
    batches = Batches(config, read_index(two_lengths), find_objective(model.pipe, model.spec))
    assert batches.windows is not None
    assert {batches.shift_of(bucket) for bucket in batches.buckets} == {batches.windows.shift}
    sigma = torch.cat([batch.sigma for batch in batches.iterate(0)])
    assert float(torch.isin(sigma, batches.windows.levels()).float().mean()) > 0.3
    file = finetune(config.model_copy(update={"steps": 1, "validate_every": 0}))
    settings = read_adapter_settings(file)
    assert settings is not None
    assert (settings.flow_shift, settings.num_inference_steps) == (pytest.approx(batches.windows.shift), 3)
