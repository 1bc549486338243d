"""From a folder of videos to an adapter that generation uses: prepare, tune, be killed, go on, export."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import radial
from radial import GenerationError, ModelError, OutputError, RequestError
from radial.adapter_settings import AdapterSettings, read_adapter_settings
from radial.loading import LoadedModel, load
from radial.pipeline import generate
from radial.request import make_request
from radial_finetune import checkpoints, objective, train
from radial_finetune.adapter import add_adapter, convert_names
from radial_finetune.clips import Cut, find_sources, read_clips, resample
from radial_finetune.config import FinetuneConfig, make_config, read_config
from radial_finetune.prepare import prepare, read_clip, read_index
from radial_finetune.train import finetune, learning_rate
from radial_finetune.world import describe, draw_scene, render

CUT = Cut(num_frames=9, height=32, width=32, fps=16)


def write_video(path: Path, frames: Any, fps: int = 16) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of the shapes world, of odd sizes and rates, with captions."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    for number, (fps, height, width) in enumerate([(16, 48, 48), (24, 64, 40), (30, 36, 70)] * 2):
        scene = draw_scene(rng)
        clip = render([scene], fps, height, width)[0]
        frames = ((clip.permute(1, 2, 3, 0).numpy() + 1) * 127.5).astype(np.uint8)
        write_video(folder / f"{number}.mp4", frames, fps)
        (folder / f"{number}.txt").write_text(describe(scene, rng).text)
    return folder


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> LoadedModel:
    return load(make_request(prompt="a", model=str(wan_folder), height=32, width=32, num_frames=9, seed=0))


@pytest.fixture(scope="module")
def cache(data: Path, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("cache")
    prepare(find_sources(data), out, model, CUT)
    return out


@pytest.fixture
def config(cache: Path, wan_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": str(cache), "output": str(tmp_path / "run"), "model": str(wan_folder), "rank": 4, "steps": 6,
        "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 2, "ema_decay": 0.5, "held_out": 1,
        "validate_every": 3, "lr_scheduler": "cosine", "lr_warmup_steps": 2,
    }  # fmt: skip


# The data


def test_speed_stays_as_it_is_at_another_rate(tmp_path: Path) -> None:
    """A second is a second: at 24 frames a second of material, 16 are taken, each the one shown at its instant."""
    shades = (np.arange(24)[:, None, None, None] * 10 * np.ones((1, 32, 32, 3))).astype(np.uint8)
    write_video(tmp_path / "a.mp4", shades, 24)
    taken = [int(frame.mean()) for frame in resample(tmp_path / "a.mp4", 16)]
    want = [int(24 * i / 16) * 10 for i in range(16)]
    assert len(taken) == 16
    assert np.abs(np.array(taken) - want).max() <= 3
    assert len(list(resample(tmp_path / "a.mp4", 48))) == 48


def test_scenes_are_cut_and_what_stands_still_is_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    moving = np.stack([np.roll(np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1)), i, 1) for i in range(12)])
    red, blue = (np.zeros((12, 48, 64, 3), np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 60 + moving, 60 + moving
    still = np.repeat(rng.integers(0, 255, (1, 48, 64, 3), dtype=np.uint8), 12, 0)
    write_video(tmp_path / "a.mp4", np.concatenate([red, blue, still]))
    dropped: dict[str, int] = {}
    clips = list(read_clips(tmp_path / "a.mp4", CUT, dropped))
    assert [clip.shape for clip in clips] == [(9, 32, 32, 3)] * 2
    assert clips[0][..., 0].mean() > 100 > clips[0][..., 2].mean()  # nothing of the next scene in it
    assert clips[1][..., 2].mean() > 100 > clips[1][..., 0].mean()
    assert dropped == {"too short": 3, "static": 1}


def test_captions_beside_files_or_in_a_table(data: Path, tmp_path: Path) -> None:
    beside = find_sources(data)
    assert len(beside) == 6
    for name, text in (
        ("metadata.jsonl", "".join(json.dumps({"file": s.file.name, "caption": s.caption}) + "\n" for s in beside)),
        ("metadata.csv", "file_name,text\n" + "".join(f'{s.file.name},"{s.caption}"\n' for s in beside)),
    ):
        for source in beside:
            if not (tmp_path / source.file.name).exists():
                os.link(source.file, tmp_path / source.file.name)
        (tmp_path / name).write_text(text)
        assert [(s.file.name, s.caption) for s in find_sources(tmp_path / name)] == [
            (s.file.name, s.caption) for s in beside
        ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file": "a.mp4"}', "row 1, must have a file and a caption"),
        ("metadata.jsonl", "{", "line 1, is not JSON"),
        ("metadata.jsonl", '{"file": "../a.mp4", "caption": "x"}', "lies outside the folder"),
        ("metadata.csv", "file,caption\nnone.mp4,x\n", r"no file none\.mp4"),
        ("metadata.csv", "file,caption\n", "names no clips"),
        ("a.mp4", "", r"1 of 1 videos have no caption beside them, such as a\.mp4"),
        ("notes.md", "", "has no videos"),
    ],
)
def test_data_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=message):
        find_sources(tmp_path)


def test_a_cache_holds_what_the_pipeline_would_see(cache: Path, data: Path, model: LoadedModel) -> None:
    index = read_index(cache)
    assert len(index.clips) == 6
    latents, text = read_clip(cache, index.clips[0]["file"])
    assert latents.shape == (16, 3, 4, 4)
    with torch.inference_mode():
        want = model.pipe.encode_prompt(index.clips[0]["caption"], do_classifier_free_guidance=False,
                                        max_sequence_length=model.spec.max_sequence_length)[0][0]  # fmt: skip
        assert torch.allclose(text, want, atol=1e-6)
        clip = next(read_clips(data / index.clips[0]["source"], CUT, {}))
        # The pipeline's own way back from latents to frames undoes what was done here.
        vae = model.pipe.vae
        mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
        pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
        assert torch.allclose(latents[None] * std + mean, vae.encode(pixels).latent_dist.mode(), atol=1e-4)


def test_preparing_again_encodes_nothing_new(cache: Path, data: Path, model: LoadedModel) -> None:
    before = {p: p.stat().st_mtime_ns for p in (cache / "clips").iterdir()}
    lost = next(iter(before))
    lost.unlink()
    prepare(find_sources(data), cache, model, CUT)
    after = {p: p.stat().st_mtime_ns for p in (cache / "clips").iterdir()}
    assert set(after) == set(before)
    assert all(after[p] == before[p] for p in before if p != lost)
    with pytest.raises(RequestError, match="this cache holds 9 frames of 32x32 at 16 fps"):
        prepare(find_sources(data), cache, model, Cut(9, 48, 32, 16))


def test_corrupt_files_are_named_and_counted(data: Path, model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.txt").write_text("x")
    with pytest.raises(ModelError, match=r"none of the 1 files can be read as a video, such as bad\.mp4"):
        prepare(find_sources(tmp_path), tmp_path / "cache", model, CUT)
    os.link(data / "0.mp4", tmp_path / "good.mp4")
    (tmp_path / "good.txt").write_text("a shape")
    report = prepare(find_sources(tmp_path), tmp_path / "cache", model, CUT)
    assert (report.files, report.kept, report.corrupt) == (2, 1, ["bad.mp4"])
    (tmp_path / "bad.mp4").unlink()
    with pytest.raises(RequestError, match="no clip of 81 frames is left: 1 too short"):
        prepare(find_sources(tmp_path), tmp_path / "long", model, Cut(81, 32, 32, 16))


# The settings


def test_settings_are_checked_whole(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('data = "cache"\noutput = "run"\nlerning_rate = 1e-4\nrank = 0\n')
    with pytest.raises(
        RequestError, match="rank greater than or equal to 1, not 0; unknown key 'lerning_rate', did you"
    ):
        read_config(file)
    file.write_text('data = "cache"\noutput = "run"\n')
    config = read_config(file, ["rank=8", "model=wan2.1-1.3b", "riflex=true", "shift = 5"])
    assert (config.rank, config.model, config.riflex, config.shift) == (8, "wan2.1-1.3b", True, 5.0)
    with pytest.raises(RequestError, match="--set takes key=value, not 'rank'"):
        read_config(file, ["rank"])
    file.write_text("rank = ")
    with pytest.raises(RequestError, match="is not TOML"):
        read_config(file)
    with pytest.raises(RequestError, match="data is missing; output is missing"):
        make_config()


def test_learning_rates() -> None:
    config = FinetuneConfig(data="", output="", steps=12, lr_warmup_steps=2, lr_scheduler="cosine", learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(13)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[12] == pytest.approx(0.0)


# The objective


def test_velocity_is_what_the_sampler_integrates() -> None:
    """An exact velocity takes the scheduler from noise to the clip, at Wan's signs, in one step and in many."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    x, noise = torch.randn(2, 1, 4, 2, 3, 3)
    _, velocity = objective.add_noise(x, noise, torch.tensor([0.5]))
    for steps in (1, 5):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(steps)
        sample = noise
        for timestep in scheduler.timesteps:
            sample = scheduler.step(velocity, timestep, sample).prev_sample
        assert torch.allclose(sample, x, atol=1e-5)
    assert torch.equal(objective.add_noise(x, noise, torch.tensor([1.0]))[0], noise)


def test_noise_levels_are_shifted_once() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    plain, shifted = FlowMatchEulerDiscreteScheduler(shift=1.0), FlowMatchEulerDiscreteScheduler(shift=5.0)
    assert torch.allclose(objective.shift_sigmas(plain.sigmas, 5.0), shifted.sigmas, atol=1e-6)
    draws = objective.draw_sigmas(20_000, "uniform", 5.0, torch.Generator().manual_seed(0))
    assert float((draws > 0.9).float().mean()) == pytest.approx(0.36, abs=0.015)
    normal = objective.draw_sigmas(20_000, "logit_normal", 5.0, torch.Generator().manual_seed(0))
    assert float((normal > 0.9).float().mean()) == pytest.approx(0.28, abs=0.015)


# The run


def test_an_untrained_adapter_changes_nothing(wan: Any) -> None:
    inputs = {
        "hidden_states": torch.randn(1, 16, 3, 4, 4), "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 4, 32),
    }  # fmt: skip
    with torch.no_grad():
        before = wan.transformer(**inputs, return_dict=False)[0]
        parameters = add_adapter(wan.transformer, rank=8, alpha=8, layers="all")
        assert torch.equal(wan.transformer(**inputs, return_dict=False)[0], before)
    assert len(parameters) == 2 * 3 * 2 * 4
    assert len(add_adapter_names("self", wan)) == 2 * 3 * 4


def add_adapter_names(layers: Any, wan: Any) -> list[str]:
    wan.transformer.delete_adapters("radial")
    return list(add_adapter(wan.transformer, rank=8, alpha=8, layers=layers))


def adapter_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(config["output"]) / "adapter.safetensors")


def test_a_stopped_run_goes_on_bit_for_bit(config: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after step 3, past the checkpoint of step 2: the rest repeats as if nothing had been."""
    finetune(make_config(**config))
    whole = adapter_of(config)
    log = [json.loads(line) for line in (Path(config["output"]) / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log if "validation" in line] == [3, 6]

    def stop(progress: train.Progress) -> None:
        if progress.step == 3:
            raise RuntimeError("power cut")

    halved = config | {"output": str(tmp_path / "halved")}
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(make_config(**halved), on_step=stop)
    with pytest.raises(RequestError, match="has checkpoints of a run; pass --resume"):
        finetune(make_config(**halved))
    seen: list[int] = []
    finetune(make_config(**halved), resume=True, on_step=lambda progress: seen.append(progress.step))
    assert seen == [3, 4, 5, 6]
    resumed = adapter_of(halved)
    assert set(resumed) == set(whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    last = [Path(c["output"]) / "step-000006" for c in (config, halved)]
    for name in ("adapter", "average", "moments"):
        one, two = (load_file(folder / f"{name}.safetensors") for folder in last)
        assert one
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert len(checkpoints.list_checkpoints(Path(config["output"]))) == 2
    with pytest.raises(RequestError, match=r"is of another run: learning_rate was 0\.01 and is 0\.1"):
        finetune(make_config(**halved).model_copy(update={"learning_rate": 0.1}), resume=True)


def test_a_run_that_is_killed_or_interrupted_goes_on(config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    settings = config | {"steps": 400, "validate_every": 0}
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    output = Path(config["output"])

    def start(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "radial_app", "finetune", "run", str(file), *more]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def wait_for(process: subprocess.Popen[str], step: int) -> None:
        deadline = time.monotonic() + 120
        while not (found := checkpoints.list_checkpoints(output)) or int(found[-1].name[5:]) < step:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    killed = start()
    wait_for(killed, 4)
    killed.kill()
    killed.communicate()
    reached = int(checkpoints.list_checkpoints(output)[-1].name[5:])
    stopped = start("--resume")
    wait_for(stopped, reached + 4)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, err
    log = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert int(checkpoints.list_checkpoints(output)[-1].name[5:]) == log[-1]  # Ctrl+C lost no step
    assert not [p for p in output.iterdir() if p.name.endswith(".partial")]


def test_training_lowers_the_loss_and_acts(config: dict[str, Any], wan_folder: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    longer = config | {"steps": 40, "checkpoint_every": 40, "validate_every": 20, "trigger": "shapes"}
    adapter = finetune(make_config(**longer), on_step=lambda p: losses.append(p.loss))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])

    settings = read_adapter_settings(adapter)
    assert settings is not None
    assert (settings.target_frames, settings.rank, settings.trigger) == (9, 4, "shapes")
    lora = [{"path": str(adapter)}]
    request = make_request(prompt="a", model=str(wan_folder), height=32, width=32, loras=lora, seed=1,
                           num_inference_steps=2)  # fmt: skip
    resolved = request.resolve()
    assert (resolved.num_frames, resolved.decay) == (9, settings.decay)
    notes: list[str] = []
    (tuned,) = generate(request, on_event=lambda event: notes.append(event.note) if event.note else None)
    assert notes == ["as the adapter was tuned: 9 frames, decay 1, 1 dense layers"]
    (plain,) = generate(request.model_copy(update={"loras": (), "num_frames": 9}))
    assert not np.array_equal(tuned.frames, plain.frames)


def test_settings_for_longer_clips_are_taken_over(wan_folder: Path, tmp_path: Path) -> None:
    from radial_finetune.adapter import write_adapter

    state = {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 64)}
    file = write_adapter(tmp_path / "long.safetensors", state, {"target_frames": 129, "decay": 0.5, "dense_layers": 2,
                                                                "riflex": True, "later": "unknown"})  # fmt: skip
    lora = [{"path": str(file)}]
    taken = make_request(prompt="a", loras=lora).resolve()
    assert (taken.num_frames, taken.decay, taken.dense_layers, taken.riflex) == (129, 0.5, 2, True)
    own = make_request(prompt="a", loras=lora, num_frames=33, decay=0.7, dense_layers=0).resolve()
    assert (own.num_frames, own.decay, own.dense_layers) == (33, 0.7, 0)
    notes = make_request(prompt="a", loras=lora, num_frames=257).resolve().warnings(radial.models.MODELS["tiny"])
    assert "257 frames are beyond the 129 that the adapter was tuned for" in notes[1]
    assert read_adapter_settings(tmp_path / "none.safetensors") is None


def test_alpha_is_in_the_file(config: dict[str, Any]) -> None:
    """Whatever reads the file scales it as it was trained, knowing no alpha."""
    finetune(make_config(**config | {"steps": 2, "ema_decay": 0.0, "alpha": 1.0, "layers": "self"}))
    trained = load_file(Path(config["output"]) / "step-000002" / "adapter.safetensors")
    written = adapter_of(config)
    name = "blocks.1.attn1.to_q"
    assert torch.equal(written[f"transformer.{name}.lora_A.weight"], trained[f"{name}.lora_A.radial.weight"])
    assert torch.allclose(written[f"transformer.{name}.lora_B.weight"], trained[f"{name}.lora_B.radial.weight"] / 4)
    assert len(written) == 2 * 3 * 4
    comfy = convert_names(written, "comfy")
    assert "diffusion_model.blocks.1.self_attn.o.lora_B.weight" in comfy
    again = convert_names(comfy, "diffusers")
    assert all(torch.equal(again[key], written[key]) for key in written)
    assert set(again) == set(written)


def test_dense_and_radial_runs_differ(config: dict[str, Any], tmp_path: Path) -> None:
    states = []
    for attention in ("radial", "dense"):
        settings = config | {"output": str(tmp_path / attention), "attention": attention, "decay": 0.1, "steps": 2}
        finetune(make_config(**settings, dense_layers=0))
        states.append(adapter_of(settings))
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_losses_that_are_no_numbers_stop_the_run(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train.flow_loss

    def broken(*args: Any) -> torch.Tensor:
        return plain(*args) * float("nan")

    monkeypatch.setattr(train, "flow_loss", broken)
    with pytest.raises(GenerationError, match="3 steps in a row had no finite loss, up to step 3"):
        finetune(make_config(**config | {"max_bad_steps": 3, "held_out": 0}))
    assert checkpoints.list_checkpoints(Path(config["output"])) == []


def test_what_does_not_fit_together_is_refused_first(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no cache"):
        finetune(make_config(**config | {"data": str(tmp_path)}))
    with pytest.raises(RequestError, match="held_out is 6, and the cache has 6 clips"):
        finetune(make_config(**config | {"held_out": 6}))
    with pytest.raises(RequestError, match="other weights than tiny"):
        finetune(make_config(**config | {"model": "tiny"}))


def test_a_full_disk_harms_no_checkpoint(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(make_config(**config | {"steps": 2}))
    output = Path(config["output"])
    (before,) = checkpoints.list_checkpoints(output)
    usage = checkpoints.shutil.disk_usage(output)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="a checkpoint needs"):
        finetune(make_config(**config | {"steps": 4}), resume=True)
    assert checkpoints.list_checkpoints(output) == [before]


def test_only_known_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        transformer = torch.nn.Linear(1, 1)
        config: dict[str, Any] = {}  # noqa: RUF012

    with pytest.raises(ModelError, match="knows the objective of WanTransformer3DModel, not yet of Linear"):
        objective.check_objective(Pipe())


def test_settings_default_to_nothing() -> None:
    assert AdapterSettings().riflex is False
