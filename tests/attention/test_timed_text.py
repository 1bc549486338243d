"""Each frame reads the text of its own time: by real Wan classes, against the stock call and frame by frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, SkyReelsV2Transformer3DModel, WanTransformer3DModel

import radial
from radial.attention.context_parallel import ContextParallel
from radial.attention.processors import AttentionCall
from radial.attention.timed_text import _Reading, equal_shares, first_latents, timed_text
from radial.errors import ModelError

LENGTH, STRIDE, FRAMES = 6, 4, 9  # 33 frames


def wan(kind: Any = WanTransformer3DModel, **more: Any) -> Any:
    torch.manual_seed(0)
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
        "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 1,
    }  # fmt: skip
    return kind(**config | more).eval()


def call(transformer: Any, text: torch.Tensor) -> torch.Tensor:
    latents = torch.randn(1, 4, FRAMES, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out: torch.Tensor = transformer(
            hidden_states=latents, timestep=torch.tensor([500]), encoder_hidden_states=text, return_dict=False
        )[0]
    return out


def texts(count: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(1, count * LENGTH, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [WanTransformer3DModel, SkyReelsV2Transformer3DModel])
def test_the_same_words_all_the_time_are_the_stock_call(kind: Any) -> None:
    transformer = wan(kind, num_layers=2)
    stock = call(transformer, texts(1))
    before = [block.attn2.processor for block in transformer.blocks]
    with timed_text([transformer], LENGTH, STRIDE), radial.apply(transformer, block_size=16):
        again, alone = call(transformer, texts(1).repeat(1, 3, 1)), call(transformer, texts(1))
    with radial.apply(transformer, block_size=16):
        sparse = call(transformer, texts(1))
    with timed_text([transformer], LENGTH, STRIDE, begins=(0.0, 0.1, 0.7)):
        dense = call(transformer, texts(1).repeat(1, 3, 1))
    torch.testing.assert_close(again, sparse)
    torch.testing.assert_close(alone, sparse)
    torch.testing.assert_close(dense, stock)
    assert [block.attn2.processor for block in transformer.blocks] == before
    assert torch.equal(call(transformer, texts(1)), stock)


@pytest.mark.parametrize("begins", [None, (0.0, 0.2, 0.8)])
def test_other_words_change_their_own_frames_alone(begins: tuple[float, ...] | None) -> None:
    """With one layer, nothing mixes frames after they have read."""
    transformer, text = wan(), texts(3)
    firsts = (*first_latents(begins or equal_shares(3), FRAMES, STRIDE), FRAMES)
    with timed_text([transformer], LENGTH, STRIDE, begins):
        whole = call(transformer, text)
        for number in range(3):
            other = text.clone()
            other[:, number * LENGTH : (number + 1) * LENGTH] = texts(1, seed=3)
            changed = (call(transformer, other) - whole).abs().amax((0, 1, 3, 4)) > 0
            assert changed.nonzero().flatten().tolist() == list(range(firsts[number], firsts[number + 1]))


def test_frames_belong_to_the_text_of_their_middle() -> None:
    assert first_latents(equal_shares(4), 33, 4) == (0, 9, 17, 25)  # 129 frames: event i is from frame 32 i on
    assert first_latents(equal_shares(8), 65, 4) == (0, *range(9, 65, 8))
    assert first_latents((0.0, 0.5), 17, 1) == (0, 8)
    assert first_latents(equal_shares(1), 1, 4) == (0,)


@pytest.mark.parametrize("size", [2, 5])
def test_processes_that_share_a_clip_read_as_one(size: int) -> None:
    q, k, v = (torch.randn(1, count, 2, 8) for count in (54, 3 * LENGTH, 3 * LENGTH))
    parts: Any = [_Reading(LENGTH, STRIDE, None, ContextParallel(None, rank, size)) for rank in range(size)]
    one: Any = _Reading(LENGTH, STRIDE, None, None)
    for reading in (one, *parts):
        reading._bounds = (0, 18, 36, 54)
    asked, runs = AttentionCall("P", 0), q.split(ContextParallel(None, 0, size).shares(54), 1)
    split = [reading.attend(asked, run, k, v) for reading, run in zip(parts, runs, strict=True)]
    torch.testing.assert_close(torch.cat(split, 1), one.attend(asked, q, k, v))


def test_what_cannot_be_is_refused() -> None:
    joint = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, text_embed_dim=16, num_layers=1,
        sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=8,
    )  # fmt: skip
    with pytest.raises(ModelError, match="text and clip attend together"), timed_text([joint], LENGTH, STRIDE):
        pass
    with (
        pytest.raises(ModelError, match="reads its start image along with the text"),
        timed_text([wan(added_kv_proj_dim=24, image_dim=16)], LENGTH, STRIDE),
    ):
        pass
    with timed_text([transformer := wan()], LENGTH, STRIDE):
        with pytest.raises(ModelError, match="7 tokens of text are not texts of 6"):
            call(transformer, texts(2)[:, :7])
        with pytest.raises(ModelError, match="10 texts are too many for a clip of 9 latent frames"):
            call(transformer, texts(10))
