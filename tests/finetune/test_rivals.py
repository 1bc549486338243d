"""Ways to longer clips that ours is measured against: each does what it says, and nothing within the native length; and
how two ways are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from radial_finetune.evaluate import rivals, stories
from radial_finetune.world.story import UNIT


def test_windows_cover_every_frame() -> None:
    for frames in (9, 10, 13, 17, 33, 65):
        starts = rivals.window_starts(frames)
        covered = {frame for start in starts for frame in range(start, start + rivals.NATIVE)}
        assert covered == set(range(frames)), frames
    assert rivals.window_starts(9) == [0]


def test_one_window_is_the_plain_model(wan: Any) -> None:
    transformer = wan.transformer
    channels, width = transformer.config.in_channels, transformer.config.text_dim
    latents, text = torch.randn(1, channels, 9, 4, 4), torch.randn(1, 8, width)
    told = {"hidden_states": latents, "timestep": torch.tensor([500.0]), "encoder_hidden_states": text}
    with torch.inference_mode():
        (plain,) = transformer(**told, return_dict=False)
        with rivals.windows(transformer, {}):
            (windowed,) = transformer(**told, return_dict=False)
            longer = transformer(**told | {"hidden_states": torch.randn(1, channels, 17, 4, 4)}, return_dict=False)[0]
        again = transformer(**told, return_dict=False)[0]
    assert torch.allclose(plain, windowed, atol=1e-5)
    assert longer.shape == (1, channels, 17, 4, 4)
    assert torch.equal(plain, again)


def test_a_window_has_its_own_words(wan: Any) -> None:
    transformer = wan.transformer
    latents = torch.randn(1, transformer.config.in_channels, 13, 4, 4)
    whole, *own = (torch.randn(1, 8, transformer.config.text_dim) for _ in range(3))
    told = {"hidden_states": latents, "timestep": torch.tensor([500.0]), "encoder_hidden_states": whole}
    with torch.inference_mode():
        with rivals.windows(transformer, {whole.data_ptr(): own}):
            both = transformer(**told, return_dict=False)[0]
        first = transformer(**told | {"hidden_states": latents[:, :, :9], "encoder_hidden_states": own[0]},
                            return_dict=False)[0]  # fmt: skip
    assert torch.allclose(both[:, :, :4], first[:, :, :4], atol=1e-5)  # what no other window has


def test_attention_that_does_not_decay_is_the_models_own(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    transformer = wan.transformer
    told = {
        "hidden_states": torch.randn(1, transformer.config.in_channels, 4, 16, 16), "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, transformer.config.text_dim),
    }  # fmt: skip
    with torch.inference_mode():
        (plain,) = transformer(**told, return_dict=False)
        with rivals.decaying(transformer):  # four latent frames: no two further apart than half of the native nine
            near = transformer(**told, return_dict=False)[0]
        monkeypatch.setattr(rivals, "NATIVE", 2)
        for block in transformer.blocks:
            block.attn1.processor = rivals._Decaying(native=2)
        far = transformer(**told, return_dict=False)[0]
    assert torch.allclose(plain, near, atol=1e-5)
    assert not torch.allclose(plain, far, atol=1e-3)


def test_noise_repeats_its_first_window() -> None:
    noise = torch.randn(1, 2, 33, 3, 3)
    shuffled = rivals.free_noise(noise, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled[:, :, : rivals.NATIVE], noise[:, :, : rivals.NATIVE])
    frames = [shuffled[:, :, k] for k in range(33)]
    assert all(any(torch.equal(frame, first) for first in frames[: rivals.NATIVE]) for frame in frames)


def test_a_clip_shown_more_slowly_keeps_its_ends() -> None:
    clip = np.zeros((5, 32, 32, 3), np.uint8)
    for number, frame in enumerate(clip):
        frame[8:20, 2 + 4 * number : 12 + 4 * number] = 200
    slow = rivals.shown_slower(clip, 17)
    assert len(slow) == 17
    assert np.array_equal(slow[0], clip[0])
    assert np.array_equal(slow[-1], clip[-1])
    centres = [(frame[..., 0] * np.arange(32)).sum() / frame[..., 0].sum() for frame in slow.astype(float)]
    assert np.all(np.diff(centres) > 0)  # it moves on in every frame


def test_held_out_stories_are_told_whole_and_in_parts() -> None:
    members = stories.held_out_stories(12, 3)
    assert members == stories.held_out_stories(12, 3)
    for member in members:
        assert member.story.num_frames == 3 * UNIT + 1
        assert len(member.events) == 3
        assert all(text for _, text in member.events)
        assert all(", then " not in text for _, text in member.events)


def test_ways_are_compared_on_the_same_prompts() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, 200).astype(float)
    same = stories.compare(base, base, 0.03)
    assert (same.mean, same.better, same.equivalent) == (0.0, False, True)
    better = stories.compare(np.maximum(base, rng.random(200) < 0.4), base, 0.03)
    assert better.better
    assert not better.equivalent
    assert 0 < better.low < better.mean < better.high
    # Two ways of the same mean whose prompts have nothing to do with each other are not known to be equivalent.
    other = stories.compare(base, rng.permutation(base), 0.03)
    assert not other.better
    assert not other.equivalent
