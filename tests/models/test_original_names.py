"""Authors' names against diffusers' own converters, which were written from the authors' code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers.loaders import single_file_utils
from originals import original_state
from sparse import published
from torch import Tensor

Converter = Callable[..., dict[str, Tensor]]

# The converters of two have sizes of the full models in their code, and one looks for a name in a state it has emptied.
_MENDED = {
    "hunyuan-video": ("hidden_size = 3072", "hidden_size = 32"),
    "mochi": ("num_layers = 48", "num_layers = {layers}"),
    "cosmos": ('.to_q.0.weight" in checkpoint', '.to_q.0.weight" in converted_state_dict'),
}
_CONVERTERS = {
    "wan": "wan", "wan-i2v": "wan", "wan-flf": "wan", "wan-vace": "wan", "skyreels-v2": "wan",
    "hunyuan-video": "hunyuan_video", "ltx": "ltx", "ltx2": "ltx2", "mochi": "mochi", "cosmos": "cosmos",
}  # fmt: skip


def converter_of(case: str, layers: int) -> Converter:
    """diffusers' converter, of this size."""
    name = _CONVERTERS[case]
    found = next(
        getattr(single_file_utils, f"convert_{name}_{end}")
        for end in ("transformer_to_diffusers", "transformer_checkpoint_to_diffusers")
        if hasattr(single_file_utils, f"convert_{name}_{end}")
    )
    if case not in _MENDED:
        return found
    before, after = _MENDED[case]
    source = inspect.getsource(found)
    assert before in source
    scope: dict[str, Any] = vars(single_file_utils).copy()
    exec(source.replace(before, after.format(layers=layers)), scope)
    mended: Converter = scope[found.__name__]
    return mended


@pytest.mark.parametrize("case", _CONVERTERS)
def test_names_are_those_that_diffusers_reads(case: str) -> None:
    transformer = tiny_pipelines.CASES[case].build().transformer
    own = {name: parameter.detach() for name, parameter in transformer.named_parameters()}
    original = original_state(type(transformer).__name__, own)
    assert sum(value.numel() for value in original.values()) == sum(value.numel() for value in own.values())
    before = {f"net.{name}": value for name, value in original.items()} if case == "cosmos" else dict(original)
    converted = converter_of(case, transformer.config.num_layers)(before)
    # Places of images, of which diffusers' converter knows nothing.
    converted = {name.replace("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"): value
                 for name, value in converted.items()}  # fmt: skip
    assert converted.keys() == own.keys()
    assert all(torch.equal(converted[name], own[name]) for name in own)
    if case != "ltx":
        assert original.keys() != own.keys()


def test_names_are_those_of_a_published_file() -> None:
    """HunyuanVideo 1.5, of which diffusers reads no single files."""
    import diffusers

    with torch.device("meta"):
        transformer = diffusers.HunyuanVideo15Transformer3DModel()
    found = original_state(type(transformer).__name__, dict(transformer.named_parameters()))
    expected = {name: shape for name, (_, shape) in published("hunyuanvideo1.5_720p_t2v_fp16").items()}
    assert {name: tuple(value.shape) for name, value in found.items()} == expected
