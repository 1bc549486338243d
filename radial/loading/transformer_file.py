"""A transformer's weights from a file of its own: tensors into their places, packed ones as they are."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from radial.errors import ModelError, first_line
from radial.models.architecture import architecture_in
from radial.models.original_names import Part
from radial.models.single_file import TransformerFile, check_fit, read_transformer_file


def load_transformer_file(path: Path, folder: Path, component: str, dtype: torch.dtype) -> Any:
    """The transformer of a file, configured as a component of the checkpoint in a folder.

    Raises:
        ModelError: it does not fit, or holds numbers that are not read.
    """
    import diffusers
    from accelerate import init_empty_weights

    file, architecture = read_transformer_file(path), architecture_in(folder, component)
    found = check_fit(file, architecture, f"the {component} of {folder}")
    kind = getattr(diffusers, architecture.kind)
    exact = set(kind._keep_in_fp32_modules or ())

    def own_dtype(name: str) -> torch.dtype:
        return torch.float32 if exact & set(name.split(".")) else dtype

    try:
        with init_empty_weights():
            model = kind.from_config(json.loads(architecture.config))
        linear = {f"{name}.weight" for name, module in model.named_modules()
                  if isinstance(module, nn.Linear) and not exact & set(name.split("."))}  # fmt: skip
        places: dict[str, list[tuple[str, Part]]] = defaultdict(list)
        for name, (key, part) in found.sources.items():
            places[key].append((name, part))
        state: dict[str, Tensor] = {}
        for key, whole in _gguf_tensors(file) if is_gguf(path) else _safetensors(file):
            for name, part in places[key]:
                value = part.of(whole)
                if name not in linear or not _is_packed(value):
                    value = _plain(value).to(own_dtype(name), copy=True).reshape(model.get_parameter(name).shape)
                state[name] = value
        quantizer = _gguf_quantizer(model, state, dtype) if is_gguf(path) else None
        for name, value in state.items():
            module, _, leaf = name.rpartition(".")
            parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
            model.get_submodule(module)._parameters[leaf] = parameter
        if quantizer is not None:
            quantizer.postprocess_model(model)
            model.hf_quantizer = quantizer
    except ModelError:
        raise
    except Exception as error:  # diffusers, safetensors and gguf raise many kinds for files that are not right
        raise ModelError(f"cannot load {path}: {first_line(error)}") from error
    return model.eval()


def is_gguf(path: Path) -> bool:
    """Whether a file's weights are quantised as GGUF has it."""
    return path.suffix == ".gguf"


def _safetensors(file: TransformerFile) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file one after the other, those in 8 bit with scales multiplied by them."""
    from safetensors import safe_open

    with safe_open(file.path, framework="pt") as content:
        for name, key in file.keys.items():
            tensor = content.get_tensor(key)
            scale = file.scales.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            if scale is not None:
                factor = content.get_tensor(scale).float()
                tensor = tensor.float() * factor.reshape(-1, *(1,) * (tensor.ndim - 1))
            yield name, tensor


def _gguf_tensors(file: TransformerFile) -> Iterator[tuple[str, Tensor]]:
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    tensors = load_gguf_checkpoint(str(file.path))
    for name, key in file.keys.items():
        yield name, tensors[key]


def _is_packed(value: Tensor) -> bool:
    return hasattr(value, "quant_type")


def _plain(value: Tensor) -> Tensor:
    """A tensor's numbers, where a format has them packed."""
    if not _is_packed(value):
        return value
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    plain: Tensor = dequantize_gguf_tensor(value)
    return plain


def _gguf_quantizer(model: Any, state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Layers for packed weights in the places of linear ones, and what diffusers keeps of that."""
    import diffusers
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    quantizer = DiffusersAutoQuantizer.from_config(diffusers.GGUFQuantizationConfig(compute_dtype=dtype))
    quantizer.preprocess_model(model=model, device_map=None, state_dict=state, keep_in_fp32_modules=[])
    return quantizer
