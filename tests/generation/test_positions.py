"""Rotary positions along time beyond the native length: by the published rules, along time alone, and gone after."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import CASES

from radial import ModelError, RequestError
from radial.advice import advise
from radial.attention.positions import riflex, slowed_index, stretched, stretched_frequencies
from radial.generation.pipeline import generate
from radial.loading.load import load
from radial.models.table import MODELS
from radial.request import make_request

SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2, "seed": 3}


def test_riflex_slows_the_frequency_the_paper_names() -> None:
    assert slowed_index(44, 1e4, MODELS["wan2.1-14b"].riflex_period or 0) == 6 - 1
    assert slowed_index(16, 256.0, MODELS["hunyuan-video"].riflex_period or 0) == 4 - 1
    assert slowed_index(16, 1e4, MODELS["cogvideox-5b"].riflex_period or 0) == 2 - 1


@pytest.mark.parametrize("name", ["wan", "hunyuan-video"])
def test_riflex_keeps_the_clip_within_one_turn(name: str) -> None:
    """One pair of columns changes: by frame, from no turn to nine tenths of one; all else stays."""
    transformer = CASES[name].build().transformer
    latents = torch.zeros(1, transformer.config.in_channels, 20, 4, 4)
    before = transformer.rope(latents)
    with riflex([transformer], period=6.5):
        cos, sin = (x.reshape(20, 4, -1) for x in transformer.rope(latents))
    after = transformer.rope(latents)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    changed = (cos - before[0].reshape(20, 4, -1)).abs().amax((0, 1)) > 1e-6
    assert changed.sum() == 2
    column = int(changed.nonzero()[0])
    angles = torch.atan2(sin[:, 0, column], cos[:, 0, column]) % (2 * torch.pi)
    assert torch.allclose(angles, torch.arange(20) * (0.9 * 2 * torch.pi / 20), atol=1e-5)
    assert torch.equal(cos[..., column], cos[..., column + 1])


def test_riflex_on_positions_that_the_pipeline_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radial.attention.positions._SHARE_OF_A_TURN", 0.1)  # this clip has few frames
    case = CASES["cogvideox15"]
    pipe = case.build()
    seen: list[Any] = []
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["image_rotary_emb"]), with_kwargs=True
    )
    with torch.inference_mode():
        pipe(**case.call(pipe))
        with riflex([pipe.transformer], period=1.0):
            pipe(**case.call(pipe))
    plain, slowed = seen[0], seen[-1]
    changed = (plain[0] - slowed[0]).abs().amax(0) > 1e-6
    assert changed.sum() == 2
    assert changed.nonzero().max() < plain[0].shape[1] // 4


def test_riflex_acts_and_leaves_no_trace(wan_folder: Path) -> None:
    base = {"prompt": "a", "model": str(wan_folder), **SMALL, "num_frames": 33}
    model = load(make_request(**base))
    model = replace(model, spec=replace(model.spec, riflex_period=6.0))
    (plain,) = generate(make_request(**base), model=model)
    (stretched,) = generate(make_request(**base, riflex=True), model=model)
    (again,) = generate(make_request(**base), model=model)
    assert not np.array_equal(plain.frames, stretched.frames)
    assert np.array_equal(plain.frames, again.frames)
    with pytest.raises(ModelError, match="does not know the positions of Linear"), riflex([torch.nn.Linear(1, 1)], 9.0):
        pass


def test_positions_are_stretched_by_the_published_rules() -> None:
    """Of the bundled model's 24 temporal columns, from 9 latent frames to 33."""
    plain, _ = stretched_frequencies("interpolate", 9, 9, 24, 1e4)
    for kind in ("interpolate", "ntk", "yarn"):
        same, factor = stretched_frequencies(kind, 9, 9, 24, 1e4)
        assert torch.equal(same, plain), kind  # within the native length nothing changes
        assert factor == 1.0
        shorter, _ = stretched_frequencies(kind, 5, 9, 24, 1e4)
        assert torch.equal(shorter, plain), kind
    by_four, _ = stretched_frequencies("interpolate", 33, 9, 24, 1e4)
    assert torch.allclose(by_four, plain / 4)
    ntk, _ = stretched_frequencies("ntk", 33, 9, 24, 1e4)
    assert ntk[0] == plain[0]  # the fastest stays
    assert torch.allclose(ntk[-1], plain[-1] / 4)  # the slowest is interpolated
    yarn, factor = stretched_frequencies("yarn", 33, 9, 24, 1e4)
    assert yarn[0] == plain[0]
    assert torch.allclose(yarn[1:], plain[1:] / 4)
    assert factor == pytest.approx(0.1 * math.log(4) + 1)
    wan, _ = stretched_frequencies("yarn", 41, 21, 44, 1e4)
    assert torch.all((wan <= stretched_frequencies("interpolate", 21, 21, 44, 1e4)[0]) & (wan > 0))


@pytest.mark.parametrize("name", ["wan", "hunyuan-video"])
@pytest.mark.parametrize("kind", ["interpolate", "ntk", "yarn"])
def test_stretched_positions_act_along_time_alone(name: str, kind: Any) -> None:
    transformer = CASES[name].build().transformer
    latents = torch.zeros(1, transformer.config.in_channels, 20, 4, 4)
    before = [x.reshape(20, 4, -1) for x in transformer.rope(latents)]
    with stretched([transformer], kind, 9):
        inside = [x.reshape(20, 4, -1) for x in transformer.rope(latents)]
    after = [x.reshape(20, 4, -1) for x in transformer.rope(latents)]
    temporal = transformer.rope.t_dim if name == "wan" else transformer.rope.rope_dim[0]
    factor = stretched_frequencies(kind, 20, 9, temporal, 1e4)[1] if name == "wan" else 1.0
    for x, y, z in zip(before, inside, after, strict=True):
        assert torch.equal(x, z)
        assert torch.allclose(y[..., temporal:], x[..., temporal:] * factor)
        assert not torch.allclose(y[..., :temporal], x[..., :temporal] * factor)
    if kind == "interpolate":  # the last frame lies where the last native one was
        assert torch.allclose(inside[0][19, 0, :temporal], before[0][8, 0, :temporal], atol=1e-5)


def test_riflex_never_makes_a_frequency_faster() -> None:
    """Of Wan at 161 frames, nine tenths of a turn over the clip would be faster than the model's own."""
    transformer = CASES["wan"].build().transformer
    latents = torch.zeros(1, transformer.config.in_channels, 21, 4, 4)
    plain = transformer.rope(latents)
    with riflex([transformer], period=500.0):
        same = transformer.rope(latents)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(plain, same, strict=True))


def allegro_positions(transformer: Any, frames: int) -> Any:
    """What the transformer's own call is given, where the pipeline makes the positions."""
    pipe, seen = CASES["allegro"].build(), []

    def listen(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["image_rotary_emb"])
        raise StopIteration

    rotary = pipe._prepare_rotary_positional_embeddings(1, 64, 96, frames, torch.device("cpu"))
    hook = transformer.register_forward_pre_hook(listen, with_kwargs=True)
    with contextlib.suppress(StopIteration):
        transformer(image_rotary_emb=rotary)
    hook.remove()
    return seen[0][0][0]


ROTARY: dict[str, Callable[[Any, int], Any]] = {
    "hunyuan-video15": lambda t, n: t.rope(torch.zeros(1, 9, n, 4, 4)),
    "easyanimate": lambda t, n: t.rope_embedding(torch.zeros(1, 4, n, 4, 4)),
    "kandinsky5": lambda t, n: [t.visual_rope_embeddings(
        (1, n, 2, 2), [torch.arange(n), torch.arange(2), torch.arange(2)], (1.0, 1.0, 1.0)
    )[0]],
    "allegro": allegro_positions,
    "mochi": lambda t, n: t.rope(t.pos_frequencies, n, 2, 2, dtype=torch.float32),
    "ltx": lambda t, n: [x[0] for x in t.rope(torch.zeros(1, 4 * n, 8), n, 2, 2, (0.32, 32, 32), None)],
}  # fmt: skip


@pytest.mark.parametrize("name", ROTARY)
def test_every_family_is_stretched_along_time_alone(name: str) -> None:
    """Interpolated over four times as many steps, every fourth frame lies where one of the short clip did; and the
    pipeline's own calls see it."""
    case = CASES[name]
    pipe = case.build()
    transformer = pipe.transformer

    def rotary(frames: int) -> torch.Tensor:
        found = ROTARY[name](transformer, frames)
        return torch.stack([x.reshape(frames, -1).float() for x in found]).detach()

    native, longer = rotary(3), rotary(9)
    with stretched([transformer], "interpolate", 3):
        assert torch.allclose(rotary(9)[:, ::4], native, atol=1e-5)
        assert torch.allclose(rotary(3), native, atol=1e-6)
    if name in ("mochi", "ltx"):
        with (
            pytest.raises(ModelError, match=r"yarn is not for .*, whose positions can be interpolated alone"),
            stretched([transformer], "yarn", 3),
        ):
            pass
    else:
        with stretched([transformer], "ntk", 3):
            assert torch.allclose(rotary(9)[:, 0], longer[:, 0], atol=1e-6)
            assert not torch.allclose(rotary(9), longer, atol=1e-2)
        with stretched([transformer], "yarn", 3):
            sharper = stretched_frequencies("yarn", 9, 3, 8, 1e4)[1] if name in ("allegro", "kandinsky5") else 1.0
            assert torch.allclose(rotary(9)[:, 0], longer[:, 0] * sharper, atol=1e-5)
    assert torch.equal(rotary(9), longer)
    pipe.set_progress_bar_config(disable=True)
    made = []
    for kind in ("interpolate", None):
        with contextlib.nullcontext() if kind is None else stretched([transformer], kind, 3), torch.inference_mode():
            made.append(case.latents(pipe(**case.call(pipe), generator=torch.Generator().manual_seed(0))))
    assert not torch.allclose(made[0], made[1], atol=1e-4)


def test_positions_of_a_request(wan_folder: Path) -> None:
    base = {"prompt": "a", "model": str(wan_folder), **SMALL}
    model = load(make_request(**base))
    model = replace(model, spec=replace(model.spec, native_frames=5))
    (plain,) = generate(make_request(**base).resolve(), model=model)
    (stretched_clip,) = generate(make_request(**base, positions="interpolate").resolve(), model=model)
    (own,) = generate(make_request(**base, positions="model").resolve(), model=model)
    assert not np.array_equal(plain.frames, stretched_clip.frames)
    assert np.array_equal(plain.frames, own.frames)
    with pytest.raises(RequestError, match="riflex and positions yarn exclude each other"):
        make_request(**base, positions="yarn", riflex=True)
    for name, kind, message in (
        ("mochi", "yarn", r"yarn is not known for mochi, whose kinds are: interpolate; models with it: tiny, wan2\.1"),
        ("cosmos-1.0-7b", "interpolate", r"interpolate is not known for cosmos-1\.0-7b, whose kinds are: none; models"),
        ("hunyuan-video-1.5", "riflex", r"riflex has no constant for hunyuan-video-1\.5; models with one: tiny"),
        ("skyreels-v2-df-1.3b", "ntk", r"would change nothing for skyreels-v2-df-1\.3b, which makes longer clips win"),
    ):
        with pytest.raises(RequestError, match=message):
            make_request(prompt="a", model=name, positions=kind).resolve()
    for name in ("mochi", "ltx-video", "wan2.2-ti2v-5b", "allegro", "kandinsky-5-lite", "easyanimate-v5.1-12b"):
        assert make_request(prompt="a", model=name, positions="interpolate").resolve().positions == "interpolate"
    longer = {"prompt": "a", "model": "wan2.1-14b", "num_frames": 161}
    for more, told in (({}, True), ({"riflex": True}, False), ({"positions": "interpolate"}, False)):
        notes = advise(make_request(**longer, **more).resolve(), MODELS["wan2.1-14b"])
        assert any("riflex puts repetition off" in note for note in notes) == told  # not beside what excludes it
    assert make_request(**base, positions="riflex").stretched_positions == "riflex"
    assert make_request(**base, positions="model", riflex=False).stretched_positions is None
