"""The adapter that a run trains: LoRA on a transformer's attention, and its file.

The file's metadata says what it was made for, and generation sets itself accordingly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from radial.adapter_settings import METADATA_KEY
from radial.errors import ModelError
from radial.files import publish

ADAPTER = "radial"
_COMFY = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}


def add_adapter(transformer: Any, rank: int, alpha: float, layers: Literal["self", "all"]) -> dict[str, Any]:
    """Put a LoRA on the attention's projections, which changes nothing yet; its parameters by name, in float32."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    where = "attn1" if layers == "self" else r"attn[12]"
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(
            r=rank, lora_alpha=alpha, init_lora_weights=True,
            target_modules=rf"blocks\.\d+\.{where}\.(to_q|to_k|to_v|to_out\.0)",
        ),
        adapter_name=ADAPTER,
    )  # fmt: skip
    cast_training_params(transformer, dtype=torch.float32)
    return {name: p for name, p in transformer.named_parameters() if p.requires_grad}


def export_state(parameters: dict[str, Tensor], scale: float, form: Literal["diffusers", "comfy"]) -> dict[str, Tensor]:
    """The adapter by diffusers' or ComfyUI's names; alpha is multiplied in, so that every reader scales it alike."""
    state = {}
    for name, value in parameters.items():
        layer, part = name.replace(f".{ADAPTER}.", ".").split(".lora_")
        tensor = value.detach().float().cpu()
        state[f"{_layer_name(layer, form)}.lora_{part}"] = (tensor * scale if part.startswith("B") else tensor).clone()
    return state


def write_adapter(path: Path, state: dict[str, Tensor], metadata: dict[str, Any], *, overwrite: bool = False) -> Path:
    """Write an adapter with what it was made for."""
    from safetensors.torch import save_file

    written = {"format": "pt", METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    publish(path, lambda partial: save_file(state, partial, metadata=written), overwrite=overwrite)
    return path


def convert_names(state: dict[str, Tensor], form: Literal["diffusers", "comfy"]) -> dict[str, Tensor]:
    """The same adapter by the other names.

    Raises:
        ModelError: the keys are of neither kind.
    """
    result = {}
    for key, value in state.items():
        layer, dot, part = key.partition(".lora_")
        if key.startswith("diffusion_model."):
            layer = layer.removeprefix("diffusion_model.")
            for diffusers, comfy in _COMFY.items():
                layer = ".".join(diffusers if piece == comfy else piece for piece in layer.split("."))
        elif not key.startswith("transformer."):
            raise ModelError(f"{key} is named neither as diffusers nor as ComfyUI names layers")
        result[f"{_layer_name(layer.removeprefix('transformer.'), form)}{dot}{part}"] = value
    return result


def _layer_name(layer: str, form: Literal["diffusers", "comfy"]) -> str:
    if form == "diffusers":
        return f"transformer.{layer}"
    for diffusers, comfy in _COMFY.items():
        layer = layer.replace(f".{diffusers}", f".{comfy}")
    return f"diffusion_model.{layer}"
