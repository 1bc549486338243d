"""LoRA files onto a pipeline: diffusers', ComfyUI's and kohya's key names, safetensors only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radial.attention.install import transformers_of
from radial.errors import ModelError, first_line
from radial.models.lora_settings import adapter_file, read_adapter_settings
from radial.request import Lora

_KOHYA_WAN = re.compile(r"lora_unet_blocks_(\d+)_(self_attn|cross_attn|ffn)_(.+?)\.(lora_down|lora_up|alpha)(.*)")
_COMFY_NORM = re.compile(r"diffusion_model\.blocks\.(\d+)\.(self_attn|cross_attn)\.(norm_[qk])\.diff")
_NORM = re.compile(r"transformer\..+\.norm_\w+\.diff")
_PART = re.compile(r"\.(lora_A|lora_B|lora_down|lora_up|lora_magnitude_vector|alpha|diff|diff_b|dora_scale)\b.*")


def load_loras(pipe: Any, loras: tuple[Lora, ...]) -> tuple[str, ...]:
    """Load adapters and set their weights: what to tell the user about keys that found no layer.

    Raises:
        ModelError: an adapter is corrupt, or fits no layer.
    """
    if not loras:
        return ()
    if not hasattr(pipe, "load_lora_weights"):
        raise ModelError(f"{type(pipe).__name__} takes no LoRA")
    notes = []
    for index, lora in enumerate(loras):
        name, path = f"lora_{index}", adapter_file(lora.path)
        state = read_lora(path)
        norms = {key: state.pop(key) for key in list(state) if _NORM.fullmatch(key)}
        settings = read_adapter_settings(path)
        experts = _experts(pipe, settings.expert if settings is not None else None)
        try:
            for expert in experts:
                second = {"load_into_transformer_2": True} if expert == "transformer_2" else {}
                pipe.load_lora_weights(dict(state), adapter_name=name, **second)
                _add_to_norms(getattr(pipe, expert), norms, lora.weight)
        except Exception as error:  # diffusers and peft raise many kinds for keys that do not fit
            raise ModelError(f"LoRA {path.name} does not fit this model: {first_line(error)}") from error
        layers, fitted = layer_names(state), _fitted_layers(pipe, name)
        if not fitted:
            raise ModelError(
                f"LoRA {path.name} does not fit this model: none of its keys match a layer, "
                f"{', '.join(sorted(layers)[:3])} and {max(0, len(layers) - 3)} more"
            )
        if len(fitted) < len(layers):
            notes.append(f"LoRA {path.name}: {len(fitted)} of its {len(layers)} layers are in this model")
    if len(transformers_of(pipe)) == 1:
        pipe.set_adapters([f"lora_{i}" for i in range(len(loras))], [lora.weight for lora in loras])
        return tuple(notes)
    transformer: Any
    for transformer in transformers_of(pipe):  # each has but some of them
        own = [i for i in range(len(loras)) if f"lora_{i}" in getattr(transformer, "peft_config", {})]
        if own:
            transformer.set_adapters([f"lora_{i}" for i in own], [loras[i].weight for i in own])
    return tuple(notes)


def _experts(pipe: Any, expert: str | None) -> list[str]:
    """The transformers that an adapter belongs to."""
    if len(transformers_of(pipe)) == 2:
        chosen = {"high": ["transformer"], "low": ["transformer_2"]}
        return chosen.get(expert or "", ["transformer", "transformer_2"])
    return ["transformer"]


def _add_to_norms(transformer: Any, norms: dict[str, Tensor], weight: float) -> None:
    """What an adapter adds to the weights of norms, which no loader of diffusers' takes."""
    for key, change in norms.items():
        norm = transformer.get_submodule(key.removeprefix("transformer.").removesuffix(".diff"))
        with torch.no_grad():
            norm.weight.add_(weight * change.to(norm.weight))


def read_lora(path: Path) -> dict[str, Tensor]:
    """An adapter's tensors; kohya's names for Wan become ComfyUI's, which diffusers reads whole or in part.

    Raises:
        ModelError: the file is corrupt, or holds no adapter.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"LoRA {path.name} cannot be read: {first_line(error)}") from error
    if not any(_PART.search(key) for key in state):
        raise ModelError(f"{path.name} is no LoRA: its keys are like {', '.join(sorted(state)[:2]) or 'none'}")
    # diffusers' own reading of these names wants every layer to be there, and adapters often hold attention alone.
    return {_norm_by_diffusers(_from_kohya(key)): value for key, value in state.items()}


def _norm_by_diffusers(key: str) -> str:
    if (match := _COMFY_NORM.fullmatch(key)) is None:
        return key
    block, module, norm = match.groups()
    return f"transformer.blocks.{block}.{'attn1' if module == 'self_attn' else 'attn2'}.{norm}.diff"


def layer_names(state: dict[str, Tensor]) -> set[str]:
    """The layers an adapter's keys speak of."""
    return {_PART.sub("", key) for key in state}


def _from_kohya(key: str) -> str:
    if (match := _KOHYA_WAN.fullmatch(key)) is None:
        return key
    block, module, layer, part, rest = match.groups()
    layer = layer.replace("_", ".") if module == "ffn" else layer
    return f"diffusion_model.blocks.{block}.{module}.{layer}.{part}{rest}"


def _fitted_layers(pipe: Any, adapter: str) -> set[str]:
    """Layers of the pipeline that carry an adapter."""
    found = set()
    for component in ("transformer", "transformer_2", "text_encoder"):
        model = getattr(pipe, component, None)
        if model is not None:
            for name, module in model.named_modules():
                if adapter in getattr(module, "lora_A", {}):
                    found.add(f"{component.removesuffix('_2')}.{name}")
    return found
