"""A transformer in one file, as models are passed on: safetensors in their authors' own names, or GGUF.

All else that a model needs (text encoder, autoencoder, configurations) comes from a checkpoint in diffusers' layout:
the folder that the file lies in, where that is one, or the hub's of the model that the tensors tell of.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from radial.errors import ModelError, first_line
from radial.models.checkpoint import read_folder, read_json
from radial.models.spec import ModelSpec
from radial.models.table import MODELS
from radial.models.weights import read_weights

_PREFIX = "model.diffusion_model."
# Channels out and in of a patch, by which Wan's models differ.
_WAN_PATCHES = {"wan-t2v-1.3B": (1536, 16), "wan-t2v-14B": (5120, 16), "wan-i2v-14B": (5120, 36)}


def read_single_file(file: Path) -> ModelSpec:
    """The spec of a transformer in one file.

    Raises:
        ModelError: it is no such file, or it cannot be told of which model.
    """
    _check_numbers(file)
    if (file.parent / "model_index.json").is_file():
        base = read_folder(file.parent, without=("transformer",))
        if (file.parent / "transformer_2").is_dir():
            raise ModelError(f"{file.parent} has two transformers: a file cannot stand in for one of them")
    else:
        source = _tell_model(file, file.stat().st_mtime_ns)
        base = next(spec for spec in MODELS.values() if spec.source == source)
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
        options = {"quantization_config": diffusers.GGUFQuantizationConfig(compute_dtype=dtype), "torch_dtype": dtype}
    try:
        transformer = kind.from_single_file(
            spec.transformer_file, config=str(folder), subfolder="transformer", local_files_only=True, **options
        )
    except Exception as error:  # diffusers raises many kinds for files that are not right
        raise ModelError(f"cannot load {spec.name}: {first_line(error)}") from error
    if not options:  # from_single_file casts also what must stay exact, as from_pretrained does not
        exact = set(kind._keep_in_fp32_modules or ())
        for name, tensor in [*transformer.named_parameters(), *transformer.named_buffers()]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.float32 if exact & set(name.split(".")) else dtype)
    return transformer


def is_gguf(spec: ModelSpec) -> bool:
    """Whether a spec's weights are quantised in a file of GGUF."""
    return (spec.transformer_file or "").endswith(".gguf")


def _check_numbers(file: Path) -> None:
    """Refuse weights that mean something only together with others: diffusers would take them as they are."""
    for weight in read_weights(file):
        scaled = weight.name.endswith(("scale_weight", "scale_input", "weight_scale", "scaled_fp8"))
        if scaled or weight.dtype.startswith(("I", "U", "BOOL")):
            raise ModelError(
                f"{file} holds quantised weights with scales ({weight.name}), which are not read: take the file in "
                "16 bit with --precision eight_bit_weights, or one of GGUF"
            )


@functools.lru_cache(maxsize=64)
def _tell_model(file: Path, changed: int) -> str:
    """The hub's id of the model whose tensors are in a file that was last changed then."""
    from diffusers.loaders import single_file_utils

    try:
        shapes = {weight.name: torch.empty(weight.shape, device="meta") for weight in read_weights(file)}
    except RuntimeError as error:  # more numbers than can be counted
        raise ModelError(f"cannot load {file}: its tensors have sizes that cannot be") from error
    try:
        kind = single_file_utils.infer_diffusers_model_type(shapes)
        source: str = single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    except Exception:  # of some kinds it looks for tensors that are not there
        kind, source = "", ""
    plain = {name.removeprefix(_PREFIX): tuple(tensor.shape) for name, tensor in shapes.items()}
    known = any(spec.source == source for spec in MODELS.values())
    # Its answer to every Wan that it does not know is one of these.
    if kind in _WAN_PATCHES:
        known = known and plain.get("patch_embedding.weight", ())[:2] == _WAN_PATCHES[kind]
    if not known:
        raise ModelError(
            f"{file} is no transformer of a video model that can be told by its tensors; put it into the folder of the "
            "checkpoint that it goes with"
        )
    if re.search(r"(high|low)[-_]?noise", file.name, re.IGNORECASE):
        raise ModelError(f"{file} is one of a model's two transformers, by its name: such models come as a folder")
    return source
