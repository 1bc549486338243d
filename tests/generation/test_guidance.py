"""Guidance in some of a run's steps: what is left out, in every pipeline, and what it says of itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_every_pipeline import DRIVEN
from tiny_pipelines import CASES, TinyCase
from torch import Tensor, nn

import radial
from radial import RadialPattern, RequestError
from radial.advice import advise
from radial.generation.acceleration.batched import batched_guidance
from radial.generation.acceleration.calls import BATCHED, BY_TWO_CALLS, Calls
from radial.generation.acceleration.guidance import guided_within
from radial.generation.pipeline import describe_run, generate
from radial.generation.resume import Step
from radial.generation.snapshot import Snapshot
from radial.loading.load import load
from radial.models.find import find_model
from radial.models.spec import BATCHED_GUIDANCE
from radial.models.table import MODELS
from radial.request import make_request

STEPS = 2
# Driven from Python alone, where a run is of more than its steps; other checkpoints of pipelines that are there; and
# those that make a clip over, for which the app refuses it. LTX-2 guides alike with images and without.
OTHERS = {
    "anyflow", "chronoedit", "consisid", "wan-flf", "wan22-ti2v", "cogvideox15", "wan-v2v",
    "cogvideox-v2v", "ltx2-condition",
}  # fmt: skip


def transformers_of(pipe: Any) -> list[nn.Module]:
    return [t for t in (getattr(pipe, name, None) for name in ("transformer", "transformer_2")) if t is not None]


@contextlib.contextmanager
def counting(pipe: Any) -> Iterator[list[int]]:
    """The number of clips in each call of the transformers' first blocks: those that are computed."""
    calls: list[int] = []

    def count(_module: Any, args: Any, kwargs: Any) -> None:
        calls.append(len(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))))

    hooks = []
    for transformer in transformers_of(pipe):
        lists = {name: x for name, x in transformer.named_children() if isinstance(x, nn.ModuleList)}
        name = next(n for n in ("blocks", "transformer_blocks", "visual_transformer_blocks") if n in lists)
        hooks.append(lists[name][0].register_forward_pre_hook(count, with_kwargs=True))
    yield calls
    for hook in hooks:
        hook.remove()


def run(case: TinyCase, pipe: Any, guided: range | None, **changes: Any) -> Tensor:
    arguments = case.call(pipe) | {"num_inference_steps": STEPS} | changes
    arguments = {name: value for name, value in arguments.items() if value is not None}
    with contextlib.ExitStack() as stack:
        if guided is not None:
            calls = Calls(pipe, STEPS, guided=True)
            stack.enter_context(calls.counted(transformers_of(pipe)))
            stack.enter_context(guided_within(transformers_of(pipe), calls, guided))
        stack.enter_context(torch.inference_mode())
        return torch.as_tensor(case.latents(pipe(**arguments, generator=torch.Generator().manual_seed(1))))


LTX_2_OFF = {
    "audio_guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHERS])
def test_steps_that_are_not_guided_make_one_pass(name: str) -> None:
    """Without a guided step a run is the pipeline's own without guidance; with some it is in between."""
    case = CASES[name]
    pipe = case.build()
    with counting(pipe) as calls:
        own = run(case, pipe, None)
    of_own = sum(calls)
    with counting(pipe) as calls:
        some = run(case, pipe, range(1, STEPS))
    passes = 4 if name == "ltx2" else 2
    assert sum(calls) * passes * STEPS == of_own * (passes * (STEPS - 1) + 1)
    assert some.isfinite().all()
    assert not torch.equal(some, own)
    with counting(pipe) as calls:
        none = run(case, pipe, range(0))
    assert sum(calls) * passes == of_own
    if name.startswith("hunyuan-video15"):
        pipe.guider = pipe.guider.new(enabled=False)
        without = run(case, pipe, None)
    else:
        off = {"true_cfg_scale" if "true_cfg_scale" in case.call(pipe) else "guidance_scale": 1.0}
        without = run(case, pipe, None, **off | (LTX_2_OFF if name == "ltx2" else {}))
    assert torch.allclose(none, without, atol=2e-5 * float(without.std()))


@pytest.mark.parametrize("name", ["wan", "mochi"])
def test_a_run_whose_steps_are_all_guided_is_the_pipelines_own(name: str) -> None:
    """With stock attention and with radial attention, whose hook is called within."""
    case = CASES[name]
    pipe = case.build()
    own = run(case, pipe, None)
    assert torch.equal(run(case, pipe, range(STEPS)), own)
    some = run(case, pipe, range(1))
    with radial.apply(pipe, pattern=RadialPattern(decay=16.0, sink_frames=64), block_size=16):
        assert torch.allclose(run(case, pipe, range(1)), some, atol=2e-5 * float(some.std()))
    assert torch.equal(run(case, pipe, None), own)


def test_every_pipeline_that_we_drive_is_known() -> None:
    guided = [spec for spec in MODELS.values() if not spec.guidance_is_within]
    driven = {spec.pipeline_for(task) for spec in guided for task in ("text", "image", "control")} - {None}
    assert driven <= BATCHED | BY_TWO_CALLS
    assert not BATCHED & BY_TWO_CALLS


SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 4, "seed": 3}


# One of each way of guiding, each with code of its own in diffusers.
@pytest.mark.parametrize("name", [n for n in DRIVEN if n not in ("wan-vace", "wan22", "skyreels-v2", "cogvideox-i2v")])
def test_distilled_models_make_one_pass(name: str, tmp_path: Path) -> None:
    """As adapters distilled to few steps are run: at guidance 1 nothing is computed twice, nor at less."""
    from PIL import Image

    CASES[name].build().save_pretrained(tmp_path / name)
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "start.png")
    image = str(tmp_path / "start.png") if "image" in DRIVEN[name] else None
    fields = {"height": 64, "width": 96, "num_frames": 17, "seed": 3, "image": image, "snap": True}
    fields |= {"prompt": "a red circle", "model": str(tmp_path / name), "num_inference_steps": 2}
    model = load(make_request(**fields))
    for scale in (1.0, 0.0) if name.startswith("hunyuan") else (1.0,):
        with counting(model.pipe) as calls:
            list(generate(make_request(**fields, guidance_scale=scale, guidance_end=0.5), model=model))
        assert calls == [1, 1]


def test_ltx_2_without_guidance_makes_one_pass(tmp_path: Path) -> None:
    """Its pipeline guides the sound by itself, and has guidances of two other kinds."""
    from radial.generation.pipeline import _call_arguments
    from radial.generation.watch import Watch

    pipe = CASES["ltx2"].build()
    request = make_request(prompt="a", model="ltx-2", guidance_scale=1.0, seed=1).resolve()
    model: Any = type("Model", (), {"pipe": pipe, "spec": MODELS["ltx-2"]})
    arguments = _call_arguments(request, model, Watch(2, lambda event: None), {})
    changes = {name: value for name, value in arguments.items() if "scale" in name and "decode" not in name}
    with counting(pipe) as calls:
        run(CASES["ltx2"], pipe, None, **changes)
    assert calls == [1] * STEPS


def test_an_interval_in_a_request(wan_folder: Path) -> None:
    """The whole one is as before; another is another run, and makes so many passes fewer; the receipt tells it."""
    fields = {"prompt": "a", "model": str(wan_folder)} | SMALL
    plain = make_request(**fields)
    model = load(plain)
    with counting(model.pipe) as calls:
        (whole,) = generate(plain, model=model)
    assert len(calls) == 2 * 4
    (same,) = generate(make_request(**fields, guidance_start=0.0, guidance_end=1.0), model=model)
    assert np.array_equal(same.frames, whole.frames)
    assert "guidance" not in whole.receipt
    part = make_request(**fields, guidance_start=0.25, guidance_end=0.75).resolve()
    with counting(model.pipe) as calls:
        (some,) = generate(part, model=model)
    assert len(calls) == 4 + 2
    assert not np.array_equal(some.frames, whole.frames)
    assert some.receipt["guidance"] == {"first_step": 1, "guided_steps": 2, "steps": 4}
    assert describe_run(part, model) != describe_run(plain.resolve(), model)
    with counting(model.pipe) as calls:
        (again,) = generate(plain, model=model)
    assert np.array_equal(again.frames, whole.frames)


@pytest.mark.parametrize("name", ["wan22", "mochi"])
def test_a_run_with_an_interval_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    CASES[name].build().save_pretrained(tmp_path / name)
    request = make_request(
        prompt="a red circle", model=str(tmp_path / name), height=64, width=96, num_frames=17, snap=True, seed=3,
        num_inference_steps=4, dense_steps=1, guidance_start=0.25, guidance_end=0.75,
    ).resolve()  # fmt: skip
    model = load(request)
    kept: dict[int, Snapshot] = {}

    def keep(step: Step) -> Any:
        kept[step.step] = step.snapshot()
        return "go on"

    (whole,) = generate(request, model=model, on_step=keep)
    for done in (1, 3):
        (resumed,) = generate(request, model=model, snapshot=kept[done])
        assert np.array_equal(resumed.frames, whole.frames), done
        assert resumed.receipt["attention"] == whole.receipt["attention"]


def test_intervals_that_cannot_be_are_refused() -> None:
    for fields, message in (
        ({"guidance_start": 1.0}, "guidance_start must be less than 1, not 1.0"),
        ({"guidance_end": 0.0}, "guidance_end must be greater than 0, not 0.0"),
        ({"guidance_start": 0.5, "guidance_end": 0.5}, "leave none of the 20 steps guided"),
        ({"guidance_start": 0.51, "guidance_end": 0.54}, "leave none of the 20 steps guided"),
    ):
        with pytest.raises(RequestError, match=message):
            make_request(prompt="a", **fields).resolve()
    assert make_request(prompt="a", guidance_start=0.29, num_inference_steps=100).resolve().guided_steps[0] == 29


def test_an_interval_without_effect_is_said() -> None:
    request = make_request(prompt="a", guidance_scale=1.0, guidance_end=0.5).resolve()
    assert any("guidance_start and guidance_end have no effect" in note for note in advise(request, find_model("tiny")))
    request = make_request(prompt="a", model="hunyuan-video", guidance_end=0.5).resolve()
    assert any("have no effect" in note for note in advise(request, MODELS["hunyuan-video"]))
    request = request.with_values(true_cfg_scale=6.0)
    assert not any("have no effect" in note for note in advise(request, MODELS["hunyuan-video"]))


BOTH = ["wan", "wan-i2v", "wan22", "skyreels-v2", "skyreels-v2-i2v", "hunyuan-video"]


@pytest.mark.parametrize("name", BOTH)
def test_both_passes_in_one_call(name: str) -> None:
    """As two calls but for rounding, also with radial attention and texts of two lengths; the first step is two."""
    case, steps = CASES[name], 4
    pipe = case.build()
    assert type(pipe).__name__ in BATCHED_GUIDANCE

    def together() -> Tensor:
        calls = Calls(pipe, steps, guided=True)
        with calls.counted(transformers_of(pipe)), batched_guidance(transformers_of(pipe), calls):
            return run(case, pipe, None, num_inference_steps=steps)

    own = run(case, pipe, None, num_inference_steps=steps)
    with counting(pipe) as counted:
        made = together()
    experts = len(transformers_of(pipe))
    clips = counted[0]
    assert counted.count(clips) == 2 * experts
    assert counted.count(2 * clips) == steps - experts
    assert torch.allclose(made, own, atol=2e-5 * float(own.std()))
    with radial.apply(pipe, pattern=RadialPattern(decay=0.2), block_size=16):
        sparse = run(case, pipe, None, num_inference_steps=steps)
        with counting(pipe) as counted:
            assert torch.allclose(together(), sparse, atol=2e-5 * float(sparse.std()))
    assert 2 * clips in counted
    assert not torch.allclose(sparse, own, atol=1e-3)


def test_a_second_pass_of_another_kind_is_made_by_itself() -> None:
    """Another text than the last one, or other latents: nothing of what was made before is handed out."""
    pipe = CASES["wan"].build()
    one, two, three = (torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(i)) for i in range(3))
    latents, timestep = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(9)), torch.tensor([500.0])

    def call(text: Tensor, shift: float = 0.0) -> Tensor:
        with torch.inference_mode():
            return pipe.transformer(latents + shift, timestep, text, return_dict=False)[0]

    wanted = [call(two), call(three), call(two, 1.0)]
    calls = Calls(pipe, 4, guided=True)
    with calls.counted([pipe.transformer]), batched_guidance([pipe.transformer], calls):
        found = []
        for text, shift in ((two, 0.0), (three, 0.0), (two, 1.0)):
            call(one)
            found.append(call(text, shift))
    for made, own in zip(found, wanted, strict=True):
        assert torch.allclose(made, own, atol=1e-5)


def test_a_run_with_batched_guidance_goes_on_bit_for_bit(wan_folder: Path) -> None:
    request = make_request(
        prompt="a", model=str(wan_folder), height=32, width=32, num_frames=9, seed=3, num_inference_steps=4,
        dense_steps=1, batched_guidance=True,
    ).resolve()  # fmt: skip
    model, kept = load(request), {}

    def keep(step: Step) -> Any:
        kept[step.step] = step.snapshot()
        return "go on"

    with counting(model.pipe) as counted:
        (whole,) = generate(request, model=model, on_step=keep)
    assert counted == [1, 1, 2, 2, 2]
    (apart,) = generate(request.with_values(batched_guidance=False), model=model)
    assert np.abs(apart.frames.astype(int) - whole.frames).max() <= 1
    for done in (1, 3):
        (resumed,) = generate(request, model=model, snapshot=kept[done])
        assert np.array_equal(resumed.frames, whole.frames)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "mochi"}, "batched_guidance is not for mochi: its pipeline makes both passes in one call already"),
        ({"cache": "fast"}, "batched_guidance and cache fast exclude each other"),
        ({"guidance_end": 0.5}, "is for steps that are all guided"),
    ],
)
def test_where_passes_stay_apart(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_request(prompt="a", batched_guidance=True, **fields).resolve()
    alone = make_request(prompt="a", batched_guidance=True, guidance_scale=1.0).resolve()
    assert any("batched_guidance has no effect" in note for note in advise(alone, find_model("tiny")))
