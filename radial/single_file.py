"""A transformer in one file, as models are passed on: safetensors in their authors' own names, or GGUF.

All else that a model needs (text encoder, autoencoder, configurations) comes from a checkpoint in diffusers' layout:
the folder that the file lies in, where that is one, or the hub's of the model that the tensors tell of.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from radial.checkpoints import read_folder, read_json
from radial.errors import ModelError, first_line
from radial.models import ModelSpec, find_model
from radial.weights import read_weights


def read_single_file(file: Path) -> ModelSpec:
    """The spec of a transformer in one file.

    Raises:
        ModelError: it is no such file, or it cannot be told of which model.
    """
    if (file.parent / "model_index.json").is_file():
        base = read_folder(file.parent, without=("transformer",))
    else:
        base = find_model(_tell_model(file))
    return replace(base, name=str(file), summary=f"{file.name}, beside {base.name}", transformer_file=str(file))


def load_single_file(spec: ModelSpec, folder: Path, dtype: torch.dtype) -> Any:
    """The transformer of a spec's file, configured as the checkpoint in a folder says.

    Raises:
        ModelError: it does not fit.
    """
    import diffusers

    assert spec.transformer_file is not None
    kind = getattr(diffusers, read_json(folder / "transformer" / "config.json").get("_class_name", ""), None)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise ModelError(f"{spec.name}: diffusers loads no single file of a {getattr(kind, '__name__', 'model')}")
    options: dict[str, Any] = {}
    if is_gguf(spec):
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    try:
        return kind.from_single_file(
            spec.transformer_file, config=str(folder), subfolder="transformer", torch_dtype=dtype,
            local_files_only=True, **options,
        )  # fmt: skip
    except Exception as error:  # diffusers raises many kinds for files that are not right
        raise ModelError(f"cannot load {spec.name}: {first_line(error)}") from error


def is_gguf(spec: ModelSpec) -> bool:
    """Whether a spec's weights are quantised in a file of GGUF."""
    return (spec.transformer_file or "").endswith(".gguf")


def _tell_model(file: Path) -> str:
    """The hub's id of the model whose tensors these are."""
    from diffusers.loaders import single_file_utils

    shapes = {weight.name: torch.empty(weight.shape, device="meta") for weight in read_weights(file)}
    kind = single_file_utils.infer_diffusers_model_type(shapes)
    source: str = single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    if not any(word in kind for word in ("wan", "hunyuan", "ltx", "mochi", "cosmos")):  # its answer to what is unknown
        raise ModelError(
            f"{file} is no transformer of a video model that can be told by its tensors; put it into the folder of the "
            "checkpoint that it goes with"
        )
    return source
