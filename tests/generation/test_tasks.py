"""What a clip can start from and end on, how it is sampled, and what stretches its positions."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import CASES

from radial import GenerationError, RequestError
from radial.advice import advise
from radial.generation.pipeline import generate
from radial.generation.watch import Event
from radial.loading.load import load
from radial.models.find import find_model
from radial.models.table import MODELS, PRESETS, find_preset
from radial.request import GenerationRequest, make_request
from radial.video.clip import Video
from radial.video.sound import read_sound

SMALL = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("wan-i2v")
    CASES["wan-i2v"].build().save_pretrained(folder)
    return folder


@pytest.fixture
def red(tmp_path: Path) -> str:
    Image.new("RGB", (100, 40), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def frames_of(request: GenerationRequest) -> Any:
    (video,) = generate(request)
    return video.frames


def test_start_and_end_images_count(image_folder: Path, tmp_path: Path, red: str) -> None:
    Image.new("RGB", (48, 32), "blue").save(tmp_path / "blue.png")
    blue = str(tmp_path / "blue.png")
    base = {"prompt": "a", "model": str(image_folder), **SMALL}
    from_red, from_blue = (frames_of(make_request(**base, image=image)) for image in (red, blue))
    assert not np.array_equal(from_red, from_blue)
    with pytest.raises(RequestError, match="takes no last_image"):
        make_request(**base, image=red, last_image=blue).resolve()

    CASES["wan-flf"].build().save_pretrained(tmp_path / "flf")
    base["model"] = str(tmp_path / "flf")
    to_blue, to_red = (frames_of(make_request(**base, image=red, last_image=image)) for image in (blue, red))
    assert not np.array_equal(to_blue, to_red)


def test_a_clip_goes_on_from_its_last_frame(image_folder: Path, tmp_path: Path) -> None:
    clip = np.zeros((5, 32, 48, 3), np.uint8)
    clip[..., 0] = np.arange(5)[:, None, None] * 40
    file = Video(clip, 16).write(tmp_path / "clip.mp4")
    request = make_request(prompt="a", model=str(image_folder), extend=str(file), **SMALL)
    (video,) = generate(request)
    assert video.frames.shape == (5 + 9 - 1, 32, 48, 3)
    assert np.abs(video.frames[:5].astype(int) - clip).max() < 30  # but for compression, the clip it was
    assert video.receipt["inputs"]["extend"]["name"] == "clip.mp4"
    Image.fromarray(video.frames[4]).save(tmp_path / "last.png")


def test_a_clip_of_another_size_is_fitted(image_folder: Path, tmp_path: Path) -> None:
    file = Video(np.full((3, 64, 64, 3), 200, np.uint8), 16).write(tmp_path / "square.mp4")
    request = make_request(prompt="a", model=str(image_folder), extend=str(file), image_fit="pad", **SMALL)
    frames = frames_of(request)
    assert frames.shape == (3 + 9 - 1, 32, 48, 3)
    assert frames[0, :, 0].max() < 30  # the black frame at the left
    assert frames[0, :, 24].min() > 150


def test_wan_that_sees_one_image_ends_on_another(tmp_path: Path) -> None:
    """As VideoX-Fun's InP models do: the image encoder sees the first, the latents hold both."""
    from tiny_pipelines import CASES

    folder = tmp_path / "Wan2.1-Fun-InP"
    CASES["wan-i2v"].build().save_pretrained(folder)
    for colour in ("red", "blue"):
        Image.new("RGB", (48, 32), colour).save(tmp_path / f"{colour}.png")
    request = make_request(
        prompt="a", model=str(folder), image=str(tmp_path / "red.png"), last_image=str(tmp_path / "blue.png"), **SMALL
    ).resolve()
    model, seen = load(request), []

    def look(_module: Any, _args: Any, kwargs: Any) -> None:
        seen.append((kwargs["encoder_hidden_states_image"], kwargs["hidden_states"]))

    hook = model.pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    next(generate(request, model=model))
    next(generate(request.with_values(last_image=None), model=model))
    hook.remove()
    (both, of_both), (alone, of_alone) = seen[0], seen[-1]
    assert torch.equal(both, alone)
    assert of_both[0, 16:20, :, 0, 0].sum(0).tolist() == [4.0, 0.0, 1.0]  # frames that are given, by latent frames
    assert of_alone[0, 16:20, :, 0, 0].sum(0).tolist() == [4.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "a.png", "extend": "b.mp4", "model": "wan2.1-i2v-14b-480p"}, "image and extend exclude each other"),
        ({"last_image": "a.png", "model": "wan2.1-flf2v-14b"}, "last_image needs image or extend"),
        ({"image": "a.png"}, "tiny does not start from an image; models that do: .*wan2.1-i2v-14b-480p"),
        ({"model": "wan2.1-i2v-14b-480p"}, "starts from an image: give --image or --extend"),
        ({"model": "framepack"}, "framepack starts from an image: give --image or --extend"),
        ({"image": "a", "last_image": "b", "model": "hunyuan-video-i2v"}, "takes no last_image; models that do: .*wan"),
        ({"riflex": True, "model": "mochi"}, r"riflex has no constant for mochi; models with one: tiny, wan2\.1"),
        ({"image_fit": "zoom"}, "image_fit must be 'crop', 'pad' or 'stretch', not 'zoom'"),
        ({"flow_shift": 0}, "flow_shift"),
    ],
)
def test_what_does_not_go_together_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_request(**{"prompt": "a", **fields}).resolve()


def test_sizes_snap_when_asked_to() -> None:
    request = make_request(prompt="a", height=100, width=130, num_frames=32, snap=True).resolve()
    assert (request.height, request.width, request.num_frames) == (96, 128, 33)
    with pytest.raises(RequestError, match="--snap takes the nearest"):
        make_request(prompt="a", height=100).resolve()
    for spec in MODELS.values():
        for size in ((1, 1, 1), (555, 777, 99), (720, 1280, 81)):
            spec.check_size(*spec.snap_size(*size))


def test_presets_follow_length_and_steps() -> None:
    wan = find_model("wan2.1-14b")
    native, longer = wan.preset(81, 50), wan.preset(161, 50)
    assert (native[0].decay, native[1].dense_layers, native[1].dense_steps) == (0.2, 1, 12)
    assert (longer[0].decay, longer[1].dense_layers, longer[1].dense_steps) == (1.0, 2, 2)
    assert wan.preset(81, 4)[1].dense_steps == 1
    assert wan.preset(81, 1)[1].dense_steps == 0
    request = make_request(prompt="a", model="wan2.1-14b", num_frames=161, dense_steps=7).resolve()
    assert (request.decay, request.dense_layers, request.dense_steps) == (1.0, 2, 7)
    hunyuan = find_model("hunyuan-video")
    assert (hunyuan.pattern.sink_frames, hunyuan.long_pattern.sink_frames) == (0, 0)


def test_few_step_presets() -> None:
    for model, sampler in (("wan2.1-14b", "lcm"), ("wan2.2-a14b", "euler"), ("hunyuan-video", "euler")):
        request = make_request(prompt="a", model=model, **find_preset("4-step", MODELS[model])).resolve()
        assert (request.num_inference_steps, request.guidance_scale, request.sampler) == (4, 1.0, sampler)
    assert request.dense_steps == 1
    with pytest.raises(RequestError, match=f"unknown preset 'fast'; there is {', '.join(PRESETS)}"):
        find_preset("fast", MODELS["tiny"])


@pytest.mark.parametrize("name", MODELS)
def test_what_authors_tell_a_pipeline_is_taken_by_it(name: str) -> None:
    spec = MODELS[name]
    for kind in filter(None, (spec.text_pipeline, spec.image_pipeline)):
        takes = inspect.signature(getattr(diffusers, kind).__call__).parameters
        assert {argument for argument, _ in spec.pipeline_arguments} <= takes.keys(), kind
    assert spec.scheduler is None or hasattr(diffusers, spec.scheduler)
    assert spec.words_for("A Red {} circle ") == "A Red {} circle " or "a red {} circle" in spec.words_for(
        "A Red {} circle "
    )


def test_from_an_image_a_model_may_want_other_settings(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"prompt": "a", "model": "skyreels-v2-df-1.3b"}
    text = make_request(**fields).resolve()
    image = make_request(**fields, image=str(tmp_path / "a.png")).resolve()
    assert (text.guidance_scale, text.flow_shift) == (6, 8)
    assert (image.guidance_scale, image.flow_shift) == (5, 5)
    assert make_request(**fields, image="a.png", guidance_scale=3, flow_shift=2).resolve().flow_shift == 2


@pytest.mark.parametrize("sampler", ["euler", "lcm", "unipc", "model"])
def test_samplers_are_for_one_run(wan_folder: Path, sampler: str) -> None:
    base = {"prompt": "a", "model": str(wan_folder), **SMALL}
    model = load(make_request(**base))
    own = model.pipe.scheduler
    (plain,) = generate(make_request(**base), model=model)
    request = make_request(**base, sampler=sampler, flow_shift=9.0)
    (other,) = generate(request, model=model)
    assert not np.array_equal(plain.frames, other.frames)
    assert model.pipe.scheduler is own
    (again,) = generate(make_request(**base), model=model)
    assert np.array_equal(plain.frames, again.frames)


def test_longer_than_trained_is_said(wan_folder: Path) -> None:
    request = make_request(prompt="a", model=str(wan_folder), **SMALL | {"num_frames": 37}).resolve()
    events: list[Event] = []
    next(generate(request, on_event=events.append))
    notes = [event.note for event in events if event.note]
    assert len(notes) == 1
    assert "37 frames are beyond the 33 that" in notes[0]
    assert "riflex" in notes[0]
    assert advise(request.model_copy(update={"num_frames": 33}), find_model(str(wan_folder))) == ()


def test_a_hub_id_of_its_own_takes_its_pipeline(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is shows when its folder is there."""
    monkeypatch.setattr("radial.models.find.config_folder", lambda source, online: wan_folder)
    monkeypatch.setattr("radial.loading.load.find_local", lambda source, without: wan_folder)
    model = load(make_request(prompt="a", model="someone/else", **SMALL))
    assert (model.spec.name, model.spec.source) == ("someone/else", "someone/else")
    assert (model.spec.block_size, type(model.pipe).__name__) == (16, "WanPipeline")


def test_the_last_good_latents_survive(wan_folder: Path) -> None:
    """A transformer that breaks down in the second step of three: the first step's latents are in the error."""
    request = make_request(
        prompt="a", model=str(wan_folder), **SMALL | {"num_inference_steps": 3, "attention": "dense"}
    )
    model = load(request)
    calls = []

    def break_down(module: Any, args: Any, output: Any) -> Any:
        calls.append(1)
        return (output[0] * float("nan"),) if len(calls) > 2 else output  # two calls a step

    model.pipe.transformer.register_forward_hook(break_down)
    with pytest.raises(GenerationError, match="stopped being numbers at step 2 of 3") as caught:
        next(generate(request, model=model))
    assert caught.value.latents is not None
    assert caught.value.latents.isfinite().all()
    assert caught.value.latents.shape == (1, 16, 3, 4, 6)


@pytest.mark.parametrize("num_frames", [9, 17])
def test_a_clip_is_heard_as_long_as_it_is_seen(num_frames: int, tmp_path: Path) -> None:
    CASES["ltx2"].build().save_pretrained(tmp_path / "ltx2")
    request = make_request(
        prompt="a red circle", model=str(tmp_path / "ltx2"), height=64, width=96, num_frames=num_frames, seed=3, fps=8,
        num_inference_steps=2,
    )  # fmt: skip
    (video,) = generate(request)
    path = video.write(tmp_path / "clip.mp4")
    heard = read_sound(path)
    assert video.sound is not None
    assert heard is not None
    assert video.sound.samples.shape[1] / video.sound.rate == pytest.approx(num_frames / 8, rel=0.2)
    assert (heard.rate, len(heard.samples)) == (video.sound.rate, len(video.sound.samples))


def test_diffusion_forcing_goes_beyond_its_window(tmp_path: Path) -> None:
    CASES["skyreels-v2-df"].build().save_pretrained(tmp_path / "df")
    request = make_request(prompt="a", model=str(tmp_path / "df"), height=32, width=32, num_frames=105, seed=3,
                           num_inference_steps=2)  # fmt: skip
    (video,) = generate(request)
    assert video.frames.shape == (105, 32, 32, 3)


def test_sizes_of_images_are_asked_before_the_run(tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), "red").save(tmp_path / "a.png")
    tall = {
        "prompt": "a",
        "model": "hunyuan-video-1.5-i2v",
        "image": str(tmp_path / "a.png"),
        "height": 848,
        "width": 480,
    }
    with pytest.raises(RequestError, match=r"in certain sizes alone; the nearest to 480x848 is 480x832 \(--snap"):
        make_request(**tall).resolve()
    snapped = make_request(**tall, snap=True).resolve()
    assert (snapped.height, snapped.width) == (832, 480)
    wide = make_request(**tall | {"height": 480, "width": 848}).resolve()
    assert (wide.height, wide.width) == (480, 848)


def test_samplers_and_shifts_are_for_flow_models() -> None:
    for more in ({"sampler": "euler"}, {"flow_shift": 3.0}, {"sampler": "unipc", "flow_shift": 2.0}):
        with pytest.raises(
            RequestError, match="is for flow models, and cogvideox-5b is none or has its own; leave it out"
        ):
            make_request(prompt="a", model="cogvideox-5b", **more).resolve()


def test_what_was_resolved_before_keeps_the_shift_of_its_time() -> None:
    """Receipts of clips made before a model had its authors' shift make the same clip again."""
    old = make_request(prompt="a", model="wan2.1-14b", seed=1).resolve().model_dump() | {"flow_shift": None}
    assert make_request(**old).resolve().flow_shift is None
    assert (
        make_request(**{k: v for k, v in old.items() if k not in ("variant", "skip_width")}).resolve().flow_shift
        is None
    )
    assert make_request(prompt="a", model="wan2.1-14b").resolve().flow_shift == 5


def notes_of(model: str, **fields: Any) -> str:
    request = make_request(model=model, **{"prompt": "a red circle rises"} | fields).resolve()
    return "; ".join(advise(request, find_model(model)))


def test_what_has_no_effect_is_said() -> None:
    assert "the negative prompt has no effect at guidance 1" in notes_of(
        "tiny", negative_prompt="blue", guidance_scale=1
    )
    assert notes_of("tiny", negative_prompt="blue") == ""
    assert "true_cfg_scale 6 would use it" in notes_of("hunyuan-video", negative_prompt="blurry")
    assert notes_of("hunyuan-video", negative_prompt="blurry", true_cfg_scale=6) == ""
    assert "true_cfg_scale has no effect on wan2.1-14b" in notes_of("wan2.1-14b", true_cfg_scale=6)
    assert "guidance_scale_2 has no effect: tiny has one transformer" in notes_of("tiny", guidance_scale_2=3)
    assert notes_of("wan2.2-a14b", guidance_scale_2=3) == ""


def test_words_that_the_bundled_model_does_not_know() -> None:
    note = notes_of("tiny", prompt="Two pandas dancing in the rain, on a striped background")
    assert note.startswith(
        "tiny draws moving shapes, and does not know: two, pandas, dancing, rain; it knows words like"
    )
    assert notes_of("tiny", prompt="A large, medium-sized plus sign zig-zags; a cyan ring") == ""


def test_words_beyond_the_text_encoder_are_shown(wan_folder: Path) -> None:
    long = "a red circle " + "very " * 80 + "rises"
    events: list[Event] = []
    next(generate(make_request(prompt=long, model=str(wan_folder), **SMALL), on_event=events.append))
    (note,) = [event.note for event in events if event.note]
    assert "the text encoder reads 64 tokens of the prompt, and not its end: '" in note
    assert note.endswith(("rises'", "...'"))


def test_true_guidance_heeds_what_a_clip_should_not_show(tmp_path: Path) -> None:
    CASES["hunyuan-video"].build().save_pretrained(tmp_path / "hunyuan")
    fields = {"prompt": "a red circle", "model": str(tmp_path / "hunyuan"), "height": 64, "width": 96, "num_frames": 5,
              "num_inference_steps": 2, "seed": 3}  # fmt: skip
    plain, without, heeded = (
        next(generate(make_request(**fields, **more))).frames
        for more in ({}, {"negative_prompt": "blue"}, {"negative_prompt": "blue", "true_cfg_scale": 4.0})
    )
    assert np.array_equal(plain, without)
    assert not np.array_equal(plain, heeded)


def test_more_events_than_a_clip_has_time_for_are_told() -> None:
    told = "a red circle rises, then spins, then moves to the left while a blue square grows, then leaves to the right"
    note = notes_of("tiny", prompt=told, num_frames=33)
    assert note == (
        "the prompt tells 3 events one after the other, and 33 frames hold 1: each takes 33; 97 frames hold all"
    )
    assert "events" not in notes_of("tiny", prompt=told, num_frames=97)
    assert "events" not in notes_of("wan2.1-14b", prompt=told)
