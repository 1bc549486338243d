"""The bundled model's control: its data, its training, how it is put together, and how it is scored."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanVACEPipeline
from huggingface_hub import constants

from radial.errors import ModelError, RequestError
from radial.generation.pipeline import generate
from radial.loading.load import LoadedModel, _take_scale
from radial.models import checkpoint
from radial.models import table as models
from radial.models.checkpoint import bundled_folder, put_together, transformer_digest
from radial.models.find import find_model
from radial.request import make_request
from radial.video.clip import Video
from radial.video.masks.kept import Kept
from radial_finetune.evaluate.control import (
    MOST_DECIBELS,
    TASKS,
    ControlScore,
    arguments_of,
    held_out_controls,
    score_control,
    summarise_controls,
    through_autoencoder,
    to_markdown,
)
from radial_finetune.pretrain import control
from radial_finetune.pretrain.control import ControlTraining, add_control, write_control
from radial_finetune.pretrain.control_data import Encoder, Example, Examples, load_examples
from radial_finetune.pretrain.denoiser import flow_loss
from radial_finetune.world.render import render, to_pixels
from radial_finetune.world.scene import COLOURS
from radial_finetune.world.steered import SIGNALS, Steered, dig, draw_steered, show

CPU = torch.device("cpu")
FRAMES, SIDE = 5, 32


@pytest.fixture(scope="module")
def bundled() -> Any:
    return WanPipeline.from_pretrained(bundled_folder("tiny"), dtype=torch.float32)


@pytest.fixture(scope="module")
def encoder(bundled: Any) -> Encoder:
    return Encoder(bundled.vae, bundled.tokenizer, bundled.text_encoder, CPU)


def example(drawn: Steered) -> Example:
    return Example(drawn, drawn.signal(), drawn.hole(), drawn.reference())


def cases() -> Iterator[Steered]:
    rng = random.Random(3)
    for task in ("inpaint", "keyframes"):
        yield draw_steered(rng, task, 9, 64)
    yield draw_steered(rng, "path", 9, 64, referenced=True)


def test_training_sees_what_the_pipeline_makes_of_the_apps_arguments(bundled: Any, encoder: Encoder) -> None:
    parts = {name: getattr(bundled, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    pipe = WanVACEPipeline(**parts, transformer=add_control(bundled.transformer, (0,)))
    _take_scale(pipe)
    for drawn in cases():
        _, ours, text = encoder.encode([example(drawn)])
        told = arguments_of(drawn)
        video, mask, pictures = pipe.preprocess_conditions(
            told["video"], told["mask"], told.get("reference_images"), 1, 64, 64, 9, torch.float32, CPU
        )
        with torch.no_grad():
            latents = pipe.prepare_video_latents(video, mask, pictures, None, CPU)
        theirs = torch.cat([latents, pipe.prepare_masks(mask, pictures)], 1)
        assert ours.shape == theirs.shape == (1, 96, 4 if drawn.picture else 3, 8, 8)
        assert torch.allclose(ours, theirs, atol=2e-4), drawn.task
        words, _ = pipe.encode_prompt(drawn.prompt, None, False, max_sequence_length=128, device=CPU)
        assert torch.allclose(text, words, atol=1e-5)


def test_control_counts_for_nothing_until_it_is_learned_and_then_enters(bundled: Any, encoder: Encoder) -> None:
    torch.manual_seed(0)
    transformer, base = add_control(bundled.transformer, (0,)), bundled.transformer
    before = {name: one.clone() for name, one in transformer.named_parameters() if not name.startswith("vace_")}
    examples = [example(draw_steered(random.Random(n), "path", FRAMES, SIDE)) for n in range(2)]
    latents, conditions, text = encoder.encode(examples)
    time = torch.full((2,), 700.0)

    def predict(conditions: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return transformer(latents, time, text, control_hidden_states=conditions, return_dict=False)[0]

    with torch.no_grad():
        assert torch.equal(predict(conditions), base(latents, time, text, return_dict=False)[0])

    def loss() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return flow_loss(transformer, latents, text, 3.0, control_hidden_states=conditions).item()

    run = control._Run(transformer, ControlTraining(seconds=1, batch_size=2, caption_dropout=0.0), CPU)
    pool = type("Pool", (), {"encoder": encoder, "sample": lambda self, count: (latents, conditions, text)})()
    first, step = loss(), run.step_on(pool)
    run.set_rate(2.0, 0.5)
    for _ in range(8):
        step()
    assert loss() < 0.95 * first
    other = predict(conditions.flip(0))
    assert (predict(conditions) - other).abs().mean() > 0.02 * other.abs().mean()
    assert all(torch.equal(one, before[name]) for name, one in transformer.named_parameters() if name in before)


def test_examples_are_others_in_each_process_and_run_and_hold_every_task() -> None:
    drawn = [
        list(itertools.islice(iter(Examples(FRAMES, SIDE, referenced, seed)), 40))
        for referenced, seed in ((False, "0 0"), (False, "0 5"), (True, "0 0"))
    ]
    prompts = [[one.drawn.prompt for one in run] for run in drawn]
    assert prompts[0] != prompts[1]
    assert {one.drawn.task for one in drawn[0]} >= {*SIGNALS, "inpaint", "keyframes"}
    assert all(one.reference_HWC is None for one in drawn[0])
    assert all(one.reference_HWC is not None and len(one.drawn.truth) == 1 for one in drawn[2])
    (batch,) = itertools.islice(load_examples(Examples(FRAMES, SIDE, False, "0 0"), 3, 0), 1)
    assert [one.drawn.prompt for one in batch] == prompts[0][:3]


def test_one_command_trains_goes_on_and_is_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(steps: int) -> str:
        arguments = f"--out {tmp_path} --device cpu --steps {steps} --batch-size 2 --pool-size 8 --processes 0"
        arguments += f" --num-frames {FRAMES} --side {SIDE} --layers 0 6"
        monkeypatch.setattr(sys, "argv", ["control", *arguments.split()])
        control.main()
        return capsys.readouterr().out

    assert "from step 0" in train(2)
    assert "from step 2" in train(3)
    (state,) = tmp_path.glob("state-*")
    assert state.name == "state-0000003"
    files = [*state.iterdir(), tmp_path / control.FILE]
    assert max(file.stat().st_size for file in files) < 16_000_000

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    if not models.CONTROL_FILE.is_file():
        with pytest.raises(RequestError, match=r"there is no .*tiny-control\.safetensors, which python"):
            find_model("tiny-control")
    monkeypatch.setattr(checkpoint, "CONTROL_FILE", tmp_path / control.FILE)
    monkeypatch.setitem(models.MODELS, "tiny-control", models.TINY_CONTROL)
    drawn = draw_steered(random.Random(2), "path", FRAMES, SIDE)
    signal_THWC = drawn.signal()
    assert signal_THWC is not None
    Video(signal_THWC, 16).write(tmp_path / "signal.mp4")
    fields: dict[str, Any] = {
        "prompt": drawn.prompt, "model": "tiny-control", "height": SIDE, "width": SIDE, "num_frames": FRAMES, "seed": 0,
        "num_inference_steps": 1, "guidance_scale": 1.0,
    }  # fmt: skip
    (steered,) = generate(make_request(**fields, control_video=str(tmp_path / "signal.mp4")))
    assert steered.frames.shape == (FRAMES, SIDE, SIDE, 3)
    assert steered.receipt["model"]["name"] == "tiny-control"
    (folder,) = (tmp_path / "cache" / "radial").iterdir()
    assert put_together(bundled_folder("tiny"), tmp_path / control.FILE) == folder
    with pytest.raises(RequestError, match="references must be at most 1 for tiny-control, not 2"):
        make_request(**fields, references=["a.png", "b.png"]).resolve()


def test_blocks_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "control.safetensors"
    write_control(file, {"vace_blocks.0.proj_in.weight": torch.zeros(2, 2)}, "of another", (0,))
    with pytest.raises(ModelError, match=r"control\.safetensors were trained beside another model than .*tiny"):
        put_together(bundled_folder("tiny"), file)
    file.write_bytes(b"none")
    with pytest.raises(ModelError, match="holds no blocks of VACE"):
        put_together(bundled_folder("tiny"), file)
    assert len(transformer_digest(bundled_folder("tiny"))) == 16


def test_what_the_autoencoder_loses_outside_a_hole_is_put_back(bundled: Any) -> None:
    """Beyond 40 dB, where it alone stays below; and neighbours across the hole's rim are as near as in the truth."""
    (drawn,) = held_out_controls("inpaint one of two", 1)
    truth, hole = drawn.frames(), drawn.hole()
    assert hole is not None
    (coded,) = through_autoencoder(LoadedModel(find_model("tiny"), bundled, CPU, torch.float32, ""), [drawn])
    kept = Kept(truth, hole).put_back(coded)
    before, after = score_control(coded, drawn), score_control(kept, drawn)
    assert before.untouched is not None
    assert before.untouched < 40
    assert after == replace(before, untouched=MOST_DECIBELS)
    rim = hole[:, :, 1:] != hole[:, :, :-1]

    def steps(frames: Any) -> float:
        return float(np.abs(np.diff(frames.astype(np.float64), axis=2))[rim].mean())

    pasted = np.where(hole[..., None], coded, truth)
    assert steps(kept) - steps(truth) < 0.5 * (steps(pasted) - steps(truth))


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_scores_in_everything(task: str) -> None:
    for drawn in held_out_controls(task, 2):
        score = score_control(drawn.frames(), drawn)
        assert score.figure
        assert score.colour
        assert score.path in (None, 0.0)
        assert score.filled in (None, 1.0)
        assert score.untouched in (None, MOST_DECIBELS)
    given = {name for name in ("path", "filled", "untouched") if getattr(score, name) is not None}
    assert given == (
        {"path"}
        if task in (*SIGNALS, "reference")
        else {"filled", "untouched"}
        if task.startswith("inpaint")
        else {"untouched"}
    )


def test_each_fault_is_seen_by_its_own_measure() -> None:
    (drawn,) = held_out_controls("path", 1)
    (figure,), (track,) = drawn.scene.figures, drawn.truth
    true = score_control(drawn.frames(), drawn)

    moved = replace(track, x=tuple(reversed(track.x)), y=tuple(reversed(track.y)))
    score = score_control(replace(drawn, truth=(moved,)).frames(), drawn)
    assert score.path is not None
    assert score.path > 0.1
    assert replace(score, path=0.0) == true

    colour = next(name for name in COLOURS if name != figure.colour)
    shape = "square" if figure.shape != "square" else "star"
    for changes, expected in (({"colour": colour}, (True, False)), ({"shape": shape}, (False, True))):
        scene = replace(drawn.scene, figures=(replace(figure, **changes),))
        score = score_control(replace(drawn, scene=scene).frames(), drawn)
        assert (score.figure, score.colour) == expected
        assert score.path is not None
        assert score.path < 0.05
    grey = np.full_like(drawn.frames(), 128)
    assert score_control(grey, drawn) == ControlScore(False, False, 1.0)


def test_holes_that_stay_empty_and_parts_that_change_are_seen() -> None:
    (drawn,) = (one for one in held_out_controls("inpaint", 1))
    hole, truth = drawn.hole(), drawn.frames()
    assert hole is not None
    score = score_control(np.where(hole[..., None], np.uint8(128), truth), drawn)
    assert (score.figure, score.colour, score.filled, score.untouched) == (False, False, 0.0, MOST_DECIBELS)
    brighter = np.where(hole[..., None], truth, truth // 2 + 60).astype(np.uint8)
    score = score_control(brighter, drawn)
    assert (score.figure, score.colour, score.filled) == (True, True, 1.0)
    assert score.untouched is not None
    assert score.untouched < 30


def test_holes_and_pictures_are_where_they_are_said_to_be() -> None:
    rng = random.Random(5)
    drawn = draw_steered(rng, "text", 9, 64)
    figures = to_pixels(render([drawn.scene], 9, 64, 64, truths=[drawn.truth])[0]).astype(int)
    coloured = figures.max(-1) - figures.min(-1) > 70
    alone = replace(drawn, scene=replace(drawn.scene, figures=drawn.scene.figures[:1]), truth=drawn.truth[:1])
    for kind in ("follow", "swept"):
        hole = dig(alone, rng, kind).hole()
        assert hole is not None
        lone = alone.frames().astype(int)
        assert not (lone.max(-1) - lone.min(-1) > 70)[~hole].any(), kind
    outside, inside = (dig(alone, random.Random(1), kind).hole() for kind in ("outside", "anywhere"))
    assert outside is not None
    assert inside is not None
    assert (outside == ~inside).all()
    assert coloured.any()
    picture = show(alone, rng).reference()
    assert picture is not None
    assert picture.shape == (64, 64, 3)


def test_a_table_has_a_column_for_each_measure() -> None:
    scores = [ControlScore(True, False, 0.02), ControlScore(True, True, 0.04)]
    table = to_markdown({"path, radial": summarise_controls(scores)})
    assert "| path, radial | 100.0 (100.0 to 100.0) | 50.0 (0.0 to 100.0) | 0.030 (0.020 to 0.040) |  |  |" in table
