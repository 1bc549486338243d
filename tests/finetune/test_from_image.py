"""Clips that start from their own first frame, and end on their own last: trained as the pipeline generates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import (
    _WAN_IMAGE,
    CASES,
    _hunyuan_transformer,
    _hunyuan_video_i2v_call,
    _wan_parts,
    _wan_transformer,
)

from radial import RequestError
from radial.generation.pipeline import generate
from radial.loading.load import load
from radial.models.table import MODELS
from radial.request import make_request
from radial.video.clip import read_frames
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import read_clip, read_index
from radial_finetune.data.clips import Cut
from radial_finetune.data.prepare import prepare
from radial_finetune.data.sources import find_sources
from radial_finetune.objective import Objective, find_objective, stands_for_frames, velocity_loss
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import make_config
from radial_finetune.training.train import finetune

HEIGHT, WIDTH, FRAMES = 64, 96, 9


def wan22_i2v() -> Any:
    """Two experts, no image encoder: a last image is a choice."""
    parts = _WAN_IMAGE | {"image_dim": None, "added_kv_proj_dim": None}
    own = _wan_parts()
    own["text_encoder"].eval()
    return diffusers.WanImageToVideoPipeline(
        **own, transformer=_wan_transformer(**parts), transformer_2=_wan_transformer(**parts),
        image_encoder=None, image_processor=None, boundary_ratio=0.9,
    )  # fmt: skip


def ti2v() -> Any:
    """The 5 B model from an image: the same weights by the other pipeline."""
    pipe = CASES["wan22-ti2v"].build()
    own = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    return diffusers.WanImageToVideoPipeline(**own, image_encoder=None, image_processor=None, expand_timesteps=True)


MODELS_FROM_IMAGE = {
    "wan2.1-i2v-14b-480p": (CASES["wan-i2v"].build, False),
    "wan2.1-flf2v-14b": (CASES["wan-flf"].build, True),
    "wan2.2-i2v-a14b": (wan22_i2v, False),
    "wan2.2-i2v-a14b to the last": (wan22_i2v, True),
    "wan2.2-ti2v-5b": (ti2v, False),
}


class Asked(Exception):
    """A transformer was asked."""


def call_of(transformer: Any, act: Any) -> dict[str, Any]:
    """What a transformer is told when something asks it first."""
    told: list[dict[str, Any]] = []

    def listen(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        told.append(kwargs)
        raise Asked

    hook = transformer.register_forward_pre_hook(listen, with_kwargs=True)
    with pytest.raises(Asked):
        act()
    hook.remove()
    return told[0]


def frames_of(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", MODELS_FROM_IMAGE)
def test_the_transformer_is_told_what_the_pipeline_tells_it(name: str) -> None:
    """Of the same frames, noise and level: input, timestep and image embeddings are the pipeline's own."""
    build, last = MODELS_FROM_IMAGE[name]
    pipe, spec = build(), replace(MODELS[name.split(" ")[0]], max_sequence_length=512)
    own: Objective = find_objective(pipe, spec)
    size = (HEIGHT, WIDTH) if name != "wan2.2-ti2v-5b" else (2 * HEIGHT, 2 * WIDTH)
    frames = frames_of(size=size)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.inference_mode():
        clip = own.encode_latents(pixels)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    images = {"image": Image.fromarray(frames[0])} | ({"last_image": Image.fromarray(frames[-1])} if last else {})
    pipe.set_progress_bar_config(disable=True)
    theirs = call_of(pipe.transformer, lambda: pipe(
        prompt="a red circle", **images, height=size[0], width=size[1], num_frames=FRAMES, latents=noise,
        num_inference_steps=3, guidance_scale=1.0, output_type="latent",
    ))  # fmt: skip

    text = own.stack_text([own.encode_text(["a red circle"])[0]])
    start = own.start_of(clip[0], own.encode_start(frames), first=True, last=last)
    told = text | {key: value[None] for key, value in start.items()}
    ours = call_of(pipe.transformer, lambda: velocity_loss(
        own, pipe.transformer, clip, told, noise, theirs["timestep"].max()[None].float() / 1000
    ))  # fmt: skip
    given = theirs["timestep"].float().max() / 1000
    assert float(given) > 0.9  # the first step is all but noise: the pipeline's latents are the noise itself
    latents = clip.shape[1]
    first = 1 if name == "wan2.2-ti2v-5b" else 0  # the clean frame is among the latents there
    assert torch.allclose(ours["hidden_states"][:, latents:], theirs["hidden_states"][:, latents:], atol=1e-5)
    assert torch.allclose(ours["hidden_states"][:, :latents, :first], theirs["hidden_states"][:, :latents, :first],
                          atol=1e-5)  # fmt: skip
    expected = (1 - given) * clip[:, :, first:] + given * noise[:, :, first:]
    assert torch.allclose(ours["hidden_states"][:, :latents, first:], expected, atol=1e-4)
    assert torch.equal(ours["timestep"].float(), theirs["timestep"].float())
    assert torch.allclose(ours["encoder_hidden_states"], theirs["encoder_hidden_states"], atol=1e-5)
    embeds = theirs["encoder_hidden_states_image"] if name.startswith("wan2.1") else None
    if embeds is not None:
        assert torch.allclose(ours["encoder_hidden_states_image"], embeds, atol=1e-5)


@pytest.fixture
def short_template(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The words around a prompt, for a language model that sees few patches of an image: the call's own default."""

    def install(pipe: Any) -> None:
        for name, value in _hunyuan_video_i2v_call(pipe)["prompt_template"].items():
            monkeypatch.setitem(pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE, name, value)

    return install


def hunyuan(condition: str) -> Any:
    pipe = CASES["hunyuan-video-i2v"].build()
    if condition == "latent_concat":
        torch.manual_seed(0)
        pipe.register_modules(transformer=_hunyuan_transformer(image_condition_type=condition, in_channels=9).eval())
    return pipe


@pytest.mark.parametrize("condition", ["token_replace", "latent_concat"])
def test_hunyuan_videos_transformer_is_told_what_the_pipeline_tells_it(condition: str, short_template: Any) -> None:
    """Within a generation whose latents are a clip at that level: all that the transformer is told is the same."""
    pipe = hunyuan(condition)
    short_template(pipe)
    own = find_objective(pipe, replace(MODELS["hunyuan-video-i2v"], max_sequence_length=64))
    frames = frames_of()
    with torch.inference_mode():
        clip = own.encode_latents(torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    told: list[dict[str, Any]] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _m, _a, kwargs: told.append(kwargs), with_kwargs=True)

    def put_clip(pipe: Any, step: int, _timestep: Any, _latents: Any) -> dict[str, Any]:
        sigma = pipe.scheduler.sigmas[step + 1]
        return {"latents": (1 - sigma) * clip + sigma * noise}

    pipe(
        image=Image.fromarray(frames[0]), prompt="a red circle", height=HEIGHT, width=WIDTH, num_frames=FRAMES,
        num_inference_steps=2, guidance_scale=1.0, max_sequence_length=64, output_type="latent",
        callback_on_step_end=put_clip,
    )  # fmt: skip
    theirs = told[1]
    (text,) = own.encode_text(["a red circle"], [Image.fromarray(frames[0])])
    start = own.start_of(clip[0], own.encode_start(frames), first=True, last=False)
    batch = own.stack_text([text]) | {name: value[None] for name, value in start.items()}
    losses = velocity_loss(own, pipe.transformer, clip, batch, noise, theirs["timestep"] / 1000)
    hook.remove()
    ours = told[2]
    assert 0 < float(theirs["timestep"]) < 1000
    names = {name for name, value in theirs.items() if isinstance(value, torch.Tensor)}
    assert names == {name for name, value in ours.items() if isinstance(value, torch.Tensor)} >= {"hidden_states"}
    for name in names:
        assert ours[name].shape == theirs[name].shape, name
        assert torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-5), name
    (other,) = own.encode_text(["a red circle"], [Image.fromarray(frames[-1])])
    assert not torch.allclose(other["prompt_embeds"], text["prompt_embeds"], atol=1e-4)  # the text saw the frame
    assert bool(losses[0, 0] == 0) == (condition == "token_replace")
    assert bool((losses[0, 1:] > 0).all())


@pytest.mark.parametrize(("condition", "attention"), [("token_replace", "radial"), ("latent_concat", "dense")])
def test_hunyuan_video_from_clips_to_a_clip_that_starts_from_an_image(
    condition: str, attention: str, data: Path, tmp_path: Path, short_template: Any
) -> None:
    folder, picture = tmp_path / "model", tmp_path / "first.png"
    hunyuan(condition).save_pretrained(folder)
    Image.fromarray(frames_of()[0]).save(picture)
    size = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES}
    loaded = load(make_request(prompt="a", model=str(folder), seed=0, image="the first frame of each clip", **size))
    short_template(loaded.pipe)
    with pytest.raises(RequestError, match="of one frame nothing is left to learn"):
        prepare(find_sources(data)[:1], tmp_path / "no", loaded, Cut((Bucket(1, HEIGHT, WIDTH),), 16))
    cut = Cut((Bucket(FRAMES, HEIGHT, WIDTH),), 16, static_threshold=0)
    prepare(find_sources(data)[:4], tmp_path / "cache", loaded, cut)
    settings: dict[str, Any] = {
        "data": str(tmp_path / "cache"), "model": str(folder), "rank": 4, "steps": 4, "output": str(tmp_path / "run"),
        "trackers": [], "held_out": 1, "validate_every": 4, "checkpoint_every": 2, "learning_rate": 1e-2,
        "timestep_sampling": "uniform", "caption_dropout": 0.5, "attention": attention, "sample_every": 4,
        "sample_steps": 1, "sample_frames": [FRAMES],
        "sample_prompts": [{"prompt": "a", "image": str(picture)}, {"prompt": "it turns"}],
    }  # fmt: skip
    index, own = read_index(tmp_path / "cache"), find_objective(loaded.pipe, loaded.spec)
    silent = Batches(make_config(**settings | {"caption_dropout": 0.999999, "steps": 1}), index, own).read(0)
    (clip,) = (one for one in index.clips if torch.equal(read_clip(tmp_path / "cache", one)[0], silent.latents[0]))
    empty = read_clip(tmp_path / "cache", clip, None)[1]["prompt_embeds"]
    assert torch.equal(silent.text["prompt_embeds"][0], empty)  # without a caption, and with its own first frame
    assert not torch.equal(empty, read_clip(tmp_path / "cache", clip)[1]["prompt_embeds"])

    adapter = finetune(make_config(**settings))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["validation"] < lines[0]["validation"]
    assert list((tmp_path / "run" / "samples").glob("000004-00-*.mp4"))
    assert list((tmp_path / "run" / "samples").glob("000004-01-*.mp4"))  # from the first frame of a held-out clip

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise RuntimeError("power cut")

    again = settings | {"output": str(tmp_path / "again"), "sample_every": 0}
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(make_config(**again), on_step=stop)
    finetune(make_config(**again), resume=True)
    one, two = (load_file(tmp_path / name / "step-000004" / "weights.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)

    common = {"prompt": "a", "seed": 0, "num_inference_steps": 2, "image": str(picture)} | size
    if condition == "latent_concat":  # whose pipeline drops frames that radial counts on: by the pipeline itself
        pipe = hunyuan(condition)
        arguments = common | {"image": Image.open(picture), "output_type": "np", "guidance_scale": 1.0}
        del arguments["seed"]
        plain = pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames
        pipe.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
        tuned = pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames
    else:
        (one_clip,) = generate(make_request(**common, model=str(folder)))
        (other_clip,) = generate(make_request(**common, model=str(folder), loras=[{"path": str(adapter)}]))
        plain, tuned = one_clip.frames, other_clip.frames
    assert not (plain == tuned).all()


def test_a_frame_that_is_given_counts_nothing() -> None:
    own = find_objective(CASES["wan22-ti2v"].build(), MODELS["wan2.2-ti2v-5b"])
    picture, clip = torch.ones(4, 1, 2, 2), torch.ones(4, 2, 2, 2)
    assert bool(own.start_of(clip, {}, first=True, last=False)["from_first"])
    assert not bool(own.start_of(picture, {}, first=True, last=False)["from_first"])  # nothing would be left
    losses = torch.tensor([[9.0, 1.0, 2.0], [9.0, 1.0, 2.0]])
    counted = own.counted(losses, {"from_first": torch.tensor([True, False])})
    assert counted[0].tolist() == [0.0, 1.5, 3.0]
    assert counted[0].mean() == losses[0, 1:].mean()
    assert torch.equal(counted[1], losses[1])


@pytest.fixture(params=["wan2.1", "wan2.1-flf", "wan2.2-a14b"])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    builds = {"wan2.1": CASES["wan-i2v"].build, "wan2.1-flf": CASES["wan-flf"].build, "wan2.2-a14b": wan22_i2v}
    folder = tmp_path / "model"
    builds[request.param]().save_pretrained(folder)
    return request.param, folder


def test_from_clips_to_a_clip_that_starts_from_an_image(
    model_folder: tuple[str, Path], data: Path, tmp_path: Path
) -> None:
    kind, folder = model_folder
    spec = make_request(prompt="a", model=str(folder))
    size = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES}
    from radial.models.find import find_model

    frames = stands_for_frames(find_model(str(folder)))
    assert set(frames) == ({"image", "last_image"} if kind == "wan2.1-flf" else {"image"}), spec
    loaded = load(make_request(prompt="a", model=str(folder), seed=0, **size, **frames))
    cut = Cut((Bucket(FRAMES, HEIGHT, WIDTH),), 16, static_threshold=0)
    prepare(find_sources(data)[:4], tmp_path / "cache", loaded, cut)
    picture, other = tmp_path / "first.png", tmp_path / "last.png"
    Image.fromarray(frames_of()[0]).save(picture)
    Image.fromarray(frames_of()[1]).save(other)
    images = {"image": str(picture)} | ({"last_image": str(other)} if kind == "wan2.1-flf" else {})
    settings: dict[str, Any] = {
        "data": str(tmp_path / "cache"), "model": str(folder), "rank": 4, "steps": 4, "output": str(tmp_path / "run"),
        "trackers": [], "held_out": 1, "validate_every": 4, "checkpoint_every": 2, "learning_rate": 1e-2,
        "timestep_sampling": "uniform",
    }  # fmt: skip
    if kind == "wan2.2-a14b":
        settings |= {"expert": "high", "last_frame_share": 0.5}
    else:
        prompts = [{"prompt": "a", **images}, {"prompt": "it turns"}]
        settings |= {"sample_every": 4, "sample_steps": 2, "sample_prompts": prompts, "sample_frames": [FRAMES]}
        with pytest.raises(RequestError, match="starts from an image: name one in sample_prompts, or set held_out"):
            finetune(make_config(**settings | {"held_out": 0}))
    adapter = finetune(make_config(**settings))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [0, 4]
    assert lines[-1]["validation"] < lines[0]["validation"]
    if kind != "wan2.2-a14b":
        assert (tmp_path / "run" / "samples" / f"000004-00-{FRAMES}.mp4").exists()
        assert (tmp_path / "run" / "samples" / f"000004-01-{FRAMES}.mp4").exists()  # from a held-out clip's frames
        image_keys = [key for key in load_file(adapter) if "add_k_proj" in key]
        assert len(image_keys) == 2 * 3  # cross-attention to the image is tuned, too

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise RuntimeError("power cut")

    again = settings | {"output": str(tmp_path / "again"), "sample_every": 0}
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(make_config(**again), on_step=stop)
    finetune(make_config(**again), resume=True)
    one, two = (load_file(tmp_path / name / "step-000004" / "weights.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)

    common = {"prompt": "a", "model": str(folder), "seed": 0, "num_inference_steps": 2, **size, **images}
    (plain,) = generate(make_request(**common))
    (tuned,) = generate(make_request(**common, loras=[{"path": str(adapter)}]))
    assert not (plain.frames == tuned.frames).all()
    if kind != "wan2.2-a14b":  # its samples are what generation makes
        wanted = tuned.write(tmp_path / "wanted.mp4")
        sample = tmp_path / "run" / "samples" / f"000004-00-{FRAMES}.mp4"
        assert (read_frames(sample) == read_frames(wanted)).all()


def test_the_5b_model_trains_from_either(data: Path, tmp_path: Path) -> None:
    """Half of the clips from their first frame, half from text alone; and the rest of the batch is as without."""
    folder = tmp_path / "model"
    CASES["wan22-ti2v"].build().save_pretrained(folder)
    loaded = load(make_request(prompt="a", model=str(folder), height=64, width=64, num_frames=FRAMES, seed=0))
    prepare(find_sources(data)[:4], tmp_path / "cache", loaded, Cut((Bucket(FRAMES, 64, 64),), 16, static_threshold=0))
    index, own = read_index(tmp_path / "cache"), find_objective(loaded.pipe, loaded.spec)
    plain = {"data": str(tmp_path / "cache"), "output": str(tmp_path / "run"), "steps": 20, "batch_size": 4}
    half = Batches(make_config(**plain, first_frame_share=0.5), index, own)
    without = Batches(make_config(**plain), index, own)
    assert "from_first" not in without.read(0).text
    drawn = torch.cat([half.read(number).text["from_first"] for number in range(20)])
    assert 20 < int(drawn.sum()) < 60
    for one, other in ((half.read(3), without.read(3)),):
        assert torch.equal(one.noise, other.noise)
        assert torch.equal(one.sigma, other.sigma)
        assert torch.equal(one.text["first_latent"], one.latents[:, :, :1])
    settings = plain | {"model": str(folder), "rank": 4, "steps": 2, "batch_size": 1, "first_frame_share": 1.0}
    assert finetune(make_config(**settings, trackers=[])).is_file()


def test_what_a_model_cannot_start_from_is_refused(cache: Path, model: Any) -> None:
    own = find_objective(model.pipe, model.spec)
    with pytest.raises(RequestError, match=r"first_frame_share 0\.5 is not for .*, which is 0 by what it is"):
        Batches(make_config(data=str(cache), output="", first_frame_share=0.5), read_index(cache), own)
