"""MiniMax-H3 from its folder, as its repository on the hub lies: the app's clip is diffusers' own, sound and all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_minimax_h3 as tiny
import torch
from PIL import Image

import radial
from radial import ModelError, RadialPattern, RequestError
from radial.advice import advise
from radial.attention.context import AttentionContext
from radial.generation.pipeline import describe_run, generate
from radial.generation.resume import Step
from radial.generation.snapshot import read_snapshot
from radial.loading.load import LoadedModel, load
from radial.loading.memory_check import find_weights
from radial.loading.needs import needs_of
from radial.models.find import find_model
from radial.request import GenerationRequest, make_request
from radial.video.sound import read_sound

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("minimax-h3"))


def ask(folder: Path, **changes: Any) -> GenerationRequest:
    fields = {"prompt": "a red circle", "model": str(folder), "seed": 3, "num_inference_steps": STEPS, **tiny.CLIP}
    return make_request(**fields | changes).resolve()


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(ask(folder))


def keyframes(folder: Path) -> dict[str, str]:
    size = (tiny.CLIP["width"], tiny.CLIP["height"])
    gradient = Image.linear_gradient("L")
    for name, image in {"image": gradient, "last_image": gradient.rotate(90)}.items():
        image.resize(size).convert("RGB").save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in ("image", "last_image")}


@pytest.mark.parametrize("task", ["t2va", "fl2va"])
def test_a_dense_clip_is_diffusers_own(folder: Path, tmp_path: Path, task: str) -> None:
    images = keyframes(tmp_path) if task == "fl2va" else {}
    (video,) = generate(ask(folder, attention="dense", **images))
    pipe = tiny.stock(folder, task)
    # diffusers refuses clips below 5 seconds; nothing else of its pipeline is changed.
    short = type(pipe)
    pipe.__class__ = type(short.__name__, (short,), {"min_duration": 0.0})
    opened = {name: Image.open(path) for name, path in images.items()}
    with torch.inference_mode():
        stock = pipe(
            prompt="a red circle", num_inference_steps=STEPS + 1, generator=torch.Generator().manual_seed(3),
            output_type="np", **tiny.CLIP, **opened,
        )  # fmt: skip
    assert np.array_equal(video.frames, (stock.get("videos")[0] * 255).round().astype("uint8"))
    assert video.sound is not None
    assert video.sound.rate == stock.get("sampling_rate") == 32000
    assert np.array_equal(video.sound.samples, stock.get("audio")[0].numpy())
    path = video.write(tmp_path / "clip.mp4")
    heard = read_sound(path)
    assert heard is not None
    assert heard.samples.std() > 0
    assert heard.samples.shape[1] / heard.rate == pytest.approx(22 / 24, abs=0.1)


def test_steps_are_the_clips_not_the_sounds(model: LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timesteps rise, and sound has others: still a dense step is the first one, and layers are counted right."""
    seen: list[tuple[int, int]] = []
    begin = AttentionContext.begin_call

    def noting(context: AttentionContext, *args: Any) -> None:
        begin(context, *args)
        seen.append((context.step, context.num_steps))
        (layout,) = context.layouts
        assert [one.kind for one in layout.segments] == ["text", "sound", "clip"]
        assert (layout.grid.frames, layout.grid.height, layout.grid.width) == (7, 2, 3)
        assert layout.segments[1].tokens == 2 * round(22 / 24 * 40)

    monkeypatch.setattr(AttentionContext, "begin_call", noting)
    request = ask(folder, dense_steps=1, dense_layers=1, dense_last_steps=1, decay=0.2, sink_frames=0)
    (video,) = generate(request, model=model)
    assert seen == [(step, STEPS) for step in range(STEPS)]
    told = video.receipt["attention"]
    sparse = (2 - 1) * (STEPS - 2) / (2 * STEPS)
    assert told["density"] < 1
    assert told["computed_share"] == pytest.approx(1 - sparse * (1 - told["density"]), abs=2e-4)
    (dense,) = generate(ask(folder, attention="dense"), model=model)
    assert not np.array_equal(video.frames, dense.frames)


def test_references_lie_before_the_clip(folder: Path) -> None:
    """As diffusers packs an image and a sound that a clip is to be like, by the transformer that is for them."""
    from types import SimpleNamespace

    from diffusers.modular_pipelines.minimax_h3.before_denoise import MiniMaxH3Ref2VAPrepareLayoutStep

    references = [SimpleNamespace(kind="audio"), SimpleNamespace(kind="image")]
    packed = MiniMaxH3Ref2VAPrepareLayoutStep.build_ref2va_packed_sequence(
        torch.ones(9, dtype=torch.long), references, [torch.zeros(1, 4, 1, 6, 4)], [torch.zeros(10, 4)], 7, 4, 6, 11,
        (1, 2, 2), 2, 2, 0,
    )  # fmt: skip
    position_ids, token_tags, video_indices, audio_indices, text_indices, _, _ = packed
    times = torch.full((len(position_ids),), 0.25)
    times[audio_indices] = 0.5
    timestep, timestep_indices = torch.unique(times, return_inverse=True)
    noise = torch.Generator().manual_seed(0)
    call = {
        "hidden_states": torch.randn(1, len(video_indices), 16, generator=noise),
        "audio_hidden_states": torch.randn(1, len(audio_indices), 4, generator=noise),
        "encoder_hidden_states": torch.randn(1, 9, 32, generator=noise), "timestep": timestep,
        "timestep_indices": timestep_indices, "token_tags": token_tags, "position_ids": position_ids,
        "video_indices": video_indices, "audio_indices": audio_indices, "text_indices": text_indices,
    }  # fmt: skip
    pipe = SimpleNamespace(transformer_ref=tiny.transformer(seed=1))
    with torch.inference_mode():
        stock = pipe.transformer_ref(**call, return_dict=False)
        with radial.apply(pipe, pattern=RadialPattern(decay=16.0, sink_frames=64), block_size=16) as installed:
            kept = pipe.transformer_ref(**call, return_dict=False)
    (layout,) = installed.context.layouts
    assert [(one.kind, one.tokens) for one in layout.segments] == [
        ("text", 9), ("history", 10 + 3 * 2), ("sound", 22), ("clip", 7 * 2 * 3)
    ]  # fmt: skip
    assert all(torch.allclose(one, other, atol=2e-5) for one, other in zip(kept, stock, strict=True))
    assert installed.computed_share == 1.0


def test_it_goes_on_bit_for_bit_and_ends_early(model: LoadedModel, folder: Path, tmp_path: Path) -> None:
    request = ask(folder, dense_steps=1, decay=0.2)
    about, cleaned = describe_run(request, model), {}

    def keep(step: Step) -> Any:
        step.snapshot().write(tmp_path / f"{step.step}.safetensors")
        cleaned[step.step] = step.clean_latents().clone()
        return "go on"

    (whole,) = generate(request, model=model, on_step=keep)
    # At the last step nothing but noise that is none is left.
    assert torch.allclose(cleaned[STEPS], read_snapshot(tmp_path / f"{STEPS}.safetensors", about).latents, atol=1e-5)
    calls = [0]
    handle = model.pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        for done in (1, 3, STEPS):
            calls.clear()
            snapshot = read_snapshot(tmp_path / f"{done}.safetensors", about)
            assert snapshot is not None
            assert {"audio_scheduler", "audio_latents"} <= snapshot.parts.keys()
            (resumed,) = generate(request, model=model, snapshot=snapshot)
            assert len(calls) == STEPS - done
            assert np.array_equal(resumed.frames, whole.frames)
            assert np.array_equal(resumed.sound.samples, whole.sound.samples)
        calls.clear()
        (ended,) = generate(request, model=model, on_step=lambda step: "finish" if step.step == 2 else "go on")
        assert len(calls) == 2
    finally:
        handle.remove()
    assert ended.frames.shape == whole.frames.shape
    assert not np.array_equal(ended.sound.samples, whole.sound.samples)
    (again,) = generate(request, model=model)
    assert np.array_equal(again.frames, whole.frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 30}, "fps must be 24 for .*, not 30: its sound is made for that speed"),
        ({"guidance_scale": 5.0}, "guidance_scale 5 cannot be: .* was distilled with its guidance"),
        ({"negative_prompt": "blurry"}, "takes no negative_prompt: .* was distilled with its guidance"),
        ({"num_frames": 23}, "num_frames must be a multiple of 17 plus 5 for .*, not 23; the nearest are 22 and 39"),
        ({"num_frames": 3}, "the nearest are 5 and 22"),
        ({"sampler": "euler"}, "sampler euler is for flow models"),
        ({"cache": "fast"}, "cache fast is not for"),
    ],
)
def test_what_it_cannot_do_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ask(folder, num_inference_steps=20, **changes)


def test_its_named_model() -> None:
    request = make_request(prompt="a", model="minimax-h3").resolve()
    spec = find_model("minimax-h3")
    assert request.grid(spec).tokens == 37 * 24 * 42
    assert spec.latent_frames(345) == spec.native_latents == 102
    assert make_request(prompt="a", model="minimax-h3", num_frames=350, snap=True).resolve().num_frames == 345
    assert any("fewer than the 124" in note for note in advise(request.with_values(num_frames=22), spec))
    assert any("beyond the 345" in note for note in advise(request.with_values(num_frames=1433), spec))
    _, weights = find_weights(request)
    assert weights is not None
    needs = needs_of(request, spec, weights, 2)
    assert 130e9 < needs.model < 140e9  # text encoder and transformer, 62 GiB each, and 5 GB of autoencoders
    assert 66e9 < needs.vram("balanced") < 79e9  # in turn, on a card of 80 GB
    assert needs.vram("low") < 13e9


def test_its_folder_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    spec = find_model(str(folder))
    assert (spec.stride, spec.first_frame, spec.layers, spec.takes_last_image) == ((17, 8, 8), 5, 2, True)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "transformer_ref")  # of a task that is not driven: nobody misses it
    find_model(str(copy))
    index = json.loads((copy / "modular_model_index.json").read_text())
    index["vae"][2]["subfolder"] = "../elsewhere"
    (copy / "modular_model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"has its vae in '\.\./elsewhere', where a folder vae is expected"):
        find_model(str(copy))
    for file in (copy / "audio_vae").glob("*.safetensors*"):
        file.unlink()
    index["vae"][2]["subfolder"] = "vae"
    (copy / "modular_model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lacks the weights of its audio_vae"):
        find_model(str(copy))
