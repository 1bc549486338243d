"""Adapters into a model's weights, for programs that take no adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from radial.attention.install import transformers_of
from radial.attention.story.tokens import memory_tokens
from radial.errors import RequestError
from radial.files import publish
from radial.loading.load import load, quiet
from radial.loading.quantize import round_weights
from radial.request import make_request


def merge(model: str, loras: list[dict[str, object]], output: Path, dtype: torch.dtype) -> Path:
    """Write a checkpoint folder of ``model`` with adapters added to its weights, in float32 and then rounded to
    ``dtype``, but for what the transformer needs in float32. The folder appears whole or not at all.

    Raises:
        RequestError: the folder exists, or an adapter brings memory tokens.
        ModelError: the model or an adapter cannot be loaded.
        OutputError: the disk is full or cannot be written.
    """
    if output.exists():
        raise RequestError(f"{output} exists; take another --output")
    request = make_request(
        prompt="merge", model=model, loras=loras, device="cpu", dtype="float32", seed=0, long_adapter=False
    )
    pipe = load(request).pipe
    transformer: Any
    for transformer in transformers_of(pipe):
        if memory_tokens(transformer) is not None:
            raise RequestError("an adapter with memory tokens has no place for them in a checkpoint: make stories with "
                               "the adapter itself")  # fmt: skip
        if getattr(transformer, "peft_config", None):
            transformer.fuse_lora()
            transformer.unload_lora()
        round_weights(transformer, dtype)
    for name in ("text_encoder", "text_encoder_2", "image_encoder"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).to(dtype)
    with quiet():
        publish(output, lambda partial: pipe.save_pretrained(partial, safe_serialization=True), overwrite=False)
    return output
