"""HunyuanVideo 1.5, from text and from an image: trained as its pipelines generate, drawn as its authors train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import CASES

from radial import ModelError, RequestError
from radial.generation.pipeline import generate
from radial.loading.load import load
from radial.models.table import MODELS
from radial.request import make_request
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import read_clip, read_index, read_start
from radial_finetune.data.clips import Cut
from radial_finetune.data.prepare import prepare
from radial_finetune.data.sources import find_sources
from radial_finetune.objective import find_objective, objective_of, stands_for_frames, velocity_loss
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import make_config
from radial_finetune.training.train import finetune

HEIGHT, WIDTH, FRAMES = 48, 80, 9  # a size that the tiny model makes of images
TASKS = {"hunyuan-video15": "hunyuan-video-1.5", "hunyuan-video15-i2v": "hunyuan-video-1.5-i2v"}
CAPTION = 'a sign with "red"'


def frames_of(seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", TASKS)
def test_the_transformer_is_told_what_the_pipeline_tells_it(case: str) -> None:
    """Within a generation whose latents are a clip at a noise level: clip, image and mask channels, what the image
    encoder sees, timestep, both texts; and so it predicts the same, of a batch of unlike texts too."""
    pipe = CASES[case].build()
    pipe.set_progress_bar_config(disable=True)
    own = find_objective(pipe, MODELS[TASKS[case]])
    frames = frames_of()
    with torch.inference_mode():
        clip = own.encode_latents(torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1)
    noise, shift = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1)), pipe.scheduler.config.shift
    sigma = torch.tensor([shift * 0.3 / (1 + (shift - 1) * 0.3)])
    told: list[dict[str, Any]] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _m, _a, kwargs: told.append(kwargs), with_kwargs=True)
    image = {"image": Image.fromarray(frames[0])} if case.endswith("i2v") else {"height": HEIGHT, "width": WIDTH}
    pipe.guider = pipe.guider.new(guidance_scale=1.0, enabled=False)
    pipe(
        prompt=CAPTION, num_frames=FRAMES, num_inference_steps=1, sigmas=[0.3], output_type="latent",
        latents=(1 - sigma) * clip + sigma * noise, **image,
    )  # fmt: skip
    (theirs,) = told
    texts = own.encode_text([CAPTION, ""])
    assert len(texts[0]["prompt_embeds"]) < pipe.tokenizer_max_length  # padding is not kept
    start = own.start_of(clip[0], own.encode_start(frames), first=True, last=False) if image.keys() == {"image"} else {}
    batch = own.stack_text(texts) | {name: torch.stack([value] * 2) for name, value in start.items()}
    losses = velocity_loss(own, pipe.transformer, clip.repeat(2, 1, 1, 1, 1), batch, noise, sigma.repeat(2))
    hook.remove()
    ours = {name: value[:1] for name, value in told[1].items() if isinstance(value, torch.Tensor)}
    assert ours.keys() == {name for name, value in theirs.items() if isinstance(value, torch.Tensor)}
    for end in ("", "_2"):
        mask = theirs[f"encoder_attention_mask{end}"].bool()
        assert torch.equal(ours.pop(f"encoder_attention_mask{end}").bool(), mask)
        assert mask.any()
        words = ours.pop(f"encoder_hidden_states{end}")
        assert words.shape == theirs[f"encoder_hidden_states{end}"].shape
        assert torch.allclose(words[mask], theirs[f"encoder_hidden_states{end}"][mask], atol=1e-5)
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        assert torch.allclose(value, theirs[name], atol=1e-5), name
    assert bool(ours["image_embeds"].any()) == case.endswith("i2v")
    with torch.inference_mode():
        alike = pipe.transformer(**theirs)[0]
        error = (alike - (noise - clip)).square().mean((1, 3, 4))
    assert torch.allclose(losses[:1], error, rtol=1e-4)
    assert not torch.allclose(losses[:1], losses[1:], rtol=1e-4)  # the other one is told nothing


def stop(progress: Any) -> None:
    if progress.step == 3:
        raise RuntimeError("power cut")


@pytest.mark.parametrize("case", TASKS)
def test_from_clips_to_a_clip(case: str, data: Path, tmp_path: Path) -> None:
    folder, picture = tmp_path / "model", tmp_path / "first.png"
    CASES[case].build().save_pretrained(folder)
    Image.fromarray(frames_of()[0]).save(picture)
    size = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES}
    from_image = case.endswith("i2v")
    named = stands_for_frames(MODELS[TASKS[case]])
    assert bool(named) == from_image
    loaded = load(make_request(prompt="a", model=str(folder), seed=0, **size, **named))
    if from_image:
        with pytest.raises(RequestError, match=r"from images in certain sizes alone; the nearest to 96x64 is 64x48"):
            prepare(find_sources(data)[:1], tmp_path / "no", loaded, Cut((Bucket(FRAMES, 64, 96),), 16))
    buckets = (Bucket(FRAMES, HEIGHT, WIDTH), Bucket(1, 64, 64))
    prepare(find_sources(data)[:4], tmp_path / "cache", loaded, Cut(buckets, 16, static_threshold=0))
    settings: dict[str, Any] = {
        "data": str(tmp_path / "cache"), "model": str(folder), "rank": 4, "steps": 4, "output": str(tmp_path / "run"),
        "trackers": [], "held_out": 1, "validate_every": 4, "checkpoint_every": 2, "learning_rate": 1e-2,
        "layers": "blocks", "sample_every": 4, "sample_steps": 1, "sample_frames": [FRAMES],
        "sample_prompts": [{"prompt": "it turns"}],
    }  # fmt: skip
    index, own = read_index(tmp_path / "cache"), find_objective(loaded.pipe, loaded.spec)
    batches = Batches(make_config(**settings | {"steps": 12}), index, own)
    assert loaded.pipe.scheduler.config.shift == 7
    assert {batches.shift_of(bucket) for bucket in batches.buckets} == {3.0}
    # Few steps, and a shift that grows, are generation's too: those are of the sampler's shift.
    few = {"objective": "step_distillation", "sample_every": 0, "sample_steps": None}
    later = make_config(**settings | few)
    assert Batches(later, index, own).shift_of(buckets[0]) == 7
    for number in range(12):
        batch = batches.read(number)
        latents = next(read_clip(tmp_path / "cache", c) for c in batches.train if c.bucket == batch.bucket)[0]
        assert batch.latents.shape[1:] == latents.shape
        if not from_image:
            assert not {"condition", "image_embeds"} & batch.text.keys()
        elif batch.bucket.num_frames == 1:  # nothing would be left to predict
            assert not batch.text["condition"].any()
            assert not batch.text["image_embeds"].any()
        else:  # the frame by itself, whatever was drawn of the clip
            starts = [read_start(tmp_path / "cache", clip) for clip in batches.train if clip.bucket == batch.bucket]
            found = [torch.equal(batch.text["condition"][0, :-1, :1], one["first_latent"]) for one in starts]
            assert found.count(True) == 1
            assert torch.equal(batch.text["image_embeds"][0], starts[found.index(True)]["image_embeds"])
            assert batch.text["condition"][0, -1].mean((1, 2)).tolist() == [1.0, 0.0, 0.0]
    drawn = {batches.read(n).latents.sum().item() for n in range(12)}
    assert len(drawn) == 12  # another draw at every step

    if not from_image:
        assert finetune(make_config(**settings | {"steps": 1, "validate_every": 0, "sample_every": 1})).is_file()
        assert (tmp_path / "run" / "samples" / f"000001-00-{FRAMES}.mp4").exists()
        return
    adapter = finetune(make_config(**settings))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["validation"] < lines[0]["validation"]
    assert (tmp_path / "run" / "samples" / f"000004-00-{FRAMES}.mp4").exists()  # from a held-out clip's first frame
    again = settings | {"output": str(tmp_path / "again"), "sample_every": 0, "validate_every": 0}
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(make_config(**again), on_step=stop)
    finetune(make_config(**again), resume=True)
    one, two = (load_file(tmp_path / name / "step-000004" / "weights.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    common = {"prompt": "a", "model": str(folder), "seed": 0, "num_inference_steps": 1, "image": str(picture)} | size
    (plain,) = generate(make_request(**common))
    (tuned,) = generate(make_request(**common, loras=[{"path": str(adapter)}]))
    assert not (plain.frames == tuned.frames).all()


def test_a_model_that_is_told_where_steps_end_is_refused() -> None:
    config = {"in_channels": 65, "task_type": "i2v", "use_meanflow": True}
    with pytest.raises(ModelError, match="distilled to few steps"):
        objective_of("HunyuanVideo15Transformer3DModel", config, 32)
