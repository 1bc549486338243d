"""The adapter that a run trains: LoRA on a transformer's attention, and its file.

The file's metadata says what it was made for, and generation sets itself accordingly. Alpha is multiplied in, so that
every reader scales it alike; metadata keeps what it was.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from radial.errors import ModelError
from radial.files import publish
from radial.models.lora_settings import METADATA_KEY
from radial_finetune.objective import Objective

ADAPTER = "radial"
Names = Literal["diffusers", "comfy"]


def add_adapter(
    transformer: Any, objective: type[Objective] | Objective, rank: int, alpha: float, layers: str, *,
    norms: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Put a LoRA on the attention's projections, which changes nothing yet; its parameters by name, in float32.

    With ``norms``, the weights of the norms of queries and keys are among the parameters.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=True, target_modules=objective.layers[layers]),
        adapter_name=ADAPTER,
    )
    if norms:
        for name, module in transformer.named_modules():
            if re.fullmatch(objective.norms[layers], name) and getattr(module, "weight", None) is not None:
                module.weight.requires_grad_(True)
    cast_training_params(transformer, dtype=torch.float32)
    for module in transformer.modules():
        if ADAPTER in getattr(module, "lora_A", {}):
            module.reset_lora_parameters(ADAPTER, True)  # anew, in float32: PEFT drew them in the base's dtype
            module.cast_input_dtype_enabled = False
            for linear in (module.lora_A[ADAPTER], module.lora_B[ADAPTER]):
                linear.__class__ = _NarrowLinear
    return {name: p for name, p in transformer.named_parameters() if p.requires_grad}


class _NarrowLinear(torch.nn.Linear):
    """A layer that computes in its input's dtype, whatever its weight is kept in: widening a clip's tokens to float32
    for a matrix of a few hundred columns would cost more than the product."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.linear(input, self.weight.to(input.dtype))


def export_state(parameters: dict[str, Tensor], before: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The adapter by diffusers' names. Of norms, what was added to the weights they had ``before``."""
    state = {}
    for name, value in parameters.items():
        tensor = value.detach().float().cpu()
        if ".lora_" in name:
            layer, part = name.replace(f".{ADAPTER}.", ".").split(".lora_")
            state[f"transformer.{layer}.lora_{part}"] = (tensor * scale if part.startswith("B") else tensor).clone()
        else:
            state[f"transformer.{name.removesuffix('.weight')}.diff"] = tensor - before[name].float().cpu()
    return state


def write_adapter(path: Path, state: dict[str, Tensor], metadata: dict[str, Any], *, overwrite: bool = False) -> Path:
    """Write an adapter with what it was made for."""
    from safetensors.torch import save_file

    written = {"format": "pt", METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    publish(path, lambda partial: save_file(whole, partial, metadata=written), overwrite=overwrite)
    return path


def convert_names(state: dict[str, Tensor], form: Names) -> dict[str, Tensor]:
    """The same adapter by the other names.

    HunyuanVideo's and Mochi's original layers project queries, keys and values at once: three adapters become one of
    three times the rank, A stacked and B a block diagonal, which is exact; and back.

    Raises:
        ModelError: the keys are of neither kind.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        layer, part = _split_key(key)
        layers.setdefault(layer, {})[part] = value
    named: dict[str, dict[str, Tensor]] = {}
    for layer, parts in layers.items():
        if layer.startswith("diffusion_model."):
            named |= _from_comfy(layer.removeprefix("diffusion_model."), parts)
        elif layer.startswith("transformer."):
            named[layer.removeprefix("transformer.")] = parts
        else:
            raise ModelError(f"{layer} is named neither as diffusers nor as ComfyUI names layers")
    if form == "comfy":
        named = _to_comfy(named)
    prefix = "transformer." if form == "diffusers" else "diffusion_model."
    return {f"{prefix}{layer}.{part}": value for layer, parts in named.items() for part, value in parts.items()}


# diffusers' name of a layer, ComfyUI's, and which part of it, of how many, it is.
_ORIGINAL = [
    (re.compile(pattern), original, part, parts)
    for pattern, original, part, parts in (
        *((rf"blocks\.(\d+)\.attn1\.{ours}", rf"blocks.{{}}.self_attn.{theirs}", 0, 1)
          for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), (r"to_out\.0", "o"),
                               ("norm_q", "norm_q"), ("norm_k", "norm_k"))),
        *((rf"blocks\.(\d+)\.attn2\.{ours}", rf"blocks.{{}}.cross_attn.{theirs}", 0, 1)
          for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), (r"to_out\.0", "o"),
                               ("norm_q", "norm_q"), ("norm_k", "norm_k"))),
        *((rf"transformer_blocks\.(\d+)\.attn\.{ours}", rf"double_blocks.{{}}.{theirs}", part, parts)
          for ours, theirs, part, parts in (
              ("to_q", "img_attn_qkv", 0, 3), ("to_k", "img_attn_qkv", 1, 3), ("to_v", "img_attn_qkv", 2, 3),
              (r"to_out\.0", "img_attn_proj", 0, 1), ("add_q_proj", "txt_attn_qkv", 0, 3),
              ("add_k_proj", "txt_attn_qkv", 1, 3), ("add_v_proj", "txt_attn_qkv", 2, 3),
              ("to_add_out", "txt_attn_proj", 0, 1), ("norm_q", "img_attn_q_norm", 0, 1),
              ("norm_k", "img_attn_k_norm", 0, 1), ("norm_added_q", "txt_attn_q_norm", 0, 1),
              ("norm_added_k", "txt_attn_k_norm", 0, 1))),
        (r"single_transformer_blocks\.(\d+)\.attn\.norm_q", "single_blocks.{}.q_norm", 0, 1),
        (r"single_transformer_blocks\.(\d+)\.attn\.norm_k", "single_blocks.{}.k_norm", 0, 1),
        (r"single_transformer_blocks\.(\d+)\.attn\.to_q", "single_blocks.{}.linear1", 0, 4),
        (r"single_transformer_blocks\.(\d+)\.attn\.to_k", "single_blocks.{}.linear1", 1, 4),
        (r"single_transformer_blocks\.(\d+)\.attn\.to_v", "single_blocks.{}.linear1", 2, 4),
        (r"single_transformer_blocks\.(\d+)\.proj_out", "single_blocks.{}.linear2", 0, 1),
        *((rf"transformer_blocks\.(\d+)\.attn1\.{ours}", rf"blocks.{{}}.attn.{theirs}", part, parts)
          for ours, theirs, part, parts in (
              ("to_q", "qkv_x", 0, 3), ("to_k", "qkv_x", 1, 3), ("to_v", "qkv_x", 2, 3), (r"to_out\.0", "proj_x", 0, 1),
              ("add_q_proj", "qkv_y", 0, 3), ("add_k_proj", "qkv_y", 1, 3), ("add_v_proj", "qkv_y", 2, 3),
              ("to_add_out", "proj_y", 0, 1), ("norm_q", "q_norm_x", 0, 1), ("norm_k", "k_norm_x", 0, 1),
              ("norm_added_q", "q_norm_y", 0, 1), ("norm_added_k", "k_norm_y", 0, 1))),
    )
]  # fmt: skip
# After queries, keys and values, HunyuanVideo's first single layer has the feed-forward layer, four times as wide.
_MLP_WIDTHS = 4


def _to_comfy(named: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    result: dict[str, dict[str, Tensor]] = {}
    fused: dict[str, dict[int, dict[str, Tensor]]] = {}
    pieces: dict[str, int] = {}
    for layer, parts in named.items():
        original, part, count = _original(layer)
        if count == 1:
            result[original] = parts
        else:
            fused.setdefault(original, {})[part] = parts
            pieces[original] = count
    for original, members in fused.items():
        result[original] = _fuse(members, pieces[original])
    return result


def _original(layer: str) -> tuple[str, int, int]:
    for pattern, original, part, count in _ORIGINAL:
        if match := pattern.fullmatch(layer):
            return original.format(*match.groups()), part, count
    raise ModelError(f"{layer} has no name in ComfyUI that is known here")


def _fuse(members: dict[int, dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """One adapter over the parts of a layer that projects several things at once."""
    order = sorted(members)
    width = members[order[0]]["lora_B.weight"].shape[0]
    down = torch.cat([members[part]["lora_A.weight"] for part in order])
    rows = 3 * width + (_MLP_WIDTHS * width if count == 4 else 0)
    up = torch.zeros(rows, len(down), dtype=down.dtype)
    column = 0
    for part in order:
        block = members[part]["lora_B.weight"]
        up[part * width : (part + 1) * width, column : column + block.shape[1]] = block
        column += block.shape[1]
    return {"lora_A.weight": down, "lora_B.weight": up}


def _from_comfy(original: str, parts: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The layers by diffusers' names that one of ComfyUI's stands for."""
    found: dict[str, tuple[int, int]] = {}
    for pattern, template, part, count in _ORIGINAL:
        if match := re.fullmatch(re.escape(template).replace(r"\{\}", r"(\d+)"), original):
            layer = pattern.pattern.replace(r"(\d+)", match.group(1)).replace("\\", "")
            found[layer] = part, count
    if not found:
        raise ModelError(f"diffusion_model.{original} is no layer of attention that is known here")
    if len(found) == 1:
        return {next(iter(found)): parts}
    down, up = parts["lora_A.weight"], parts["lora_B.weight"]
    count = next(iter(found.values()))[1]
    width = up.shape[0] // (3 + (_MLP_WIDTHS if count == 4 else 0))
    result = {}
    for layer, (part, _) in found.items():
        block = up[part * width : (part + 1) * width]
        used = block.any(0) if block.any() else torch.ones(block.shape[1], dtype=torch.bool)
        result[layer] = {"lora_A.weight": down[used], "lora_B.weight": block[:, used]}
    return result


def _split_key(key: str) -> tuple[str, str]:
    layer, dot, part = key.partition(".lora_")
    if dot:
        return layer, f"lora_{part}"
    layer, _, part = key.rpartition(".")
    return layer, part
