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

from radial.adapters.file import AdapterFile
from radial.errors import ModelError
from radial.files import publish
from radial.models.lora_settings import METADATA_KEY
from radial.models.original_names import PARTS, original_name
from radial_finetune.data.cache import save_tensors
from radial_finetune.objective import Objective

ADAPTER = "radial"
RUN_KEY = "radial_run"  # in a file's metadata: the run that it came from
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
            state[exported_name(name)] = (tensor * scale if ".lora_B" in name else tensor).clone()
        else:
            state[exported_name(name)] = tensor - before[name].float().cpu()
    return state


def exported_name(name: str) -> str:
    """A parameter's name in files."""
    if ".lora_" in name:
        return f"transformer.{name.replace(f'.{ADAPTER}.', '.')}"
    return f"transformer.{name.removesuffix('.weight')}.diff"


def write_adapter(
    path: Path, state: dict[str, Tensor], metadata: dict[str, Any] | None, *, made: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write an adapter with what it was made for, and of which run it is."""
    written = {"format": "pt"}
    for key, value in ((METADATA_KEY, metadata), (RUN_KEY, made)):
        if value:
            written[key] = json.dumps(value, sort_keys=True)
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    publish(path, lambda partial: save_tensors(whole, partial, written), overwrite=overwrite)
    return path


def plain_tensors(file: AdapterFile) -> dict[str, Tensor]:
    """An adapter's low-rank changes and differences with alpha multiplied in, their layers named with dots: by
    diffusers' names under ``transformer.``, by the authors' under ``diffusion_model.``

    Raises:
        ModelError: it changes layers in another way than LoRA does.
    """
    tensors, state = file.tensors(), {}
    alphas = {e.layer: float(tensors[e.key]) for e in file.entries if e.kind == "alpha"}
    for entry in file.entries:
        if entry.kind == "alpha":
            continue
        if entry.kind not in ("down", "up", "diff"):
            raise ModelError(f"{file.path.name} changes {entry.layer} by {entry.kind}; only LoRA is converted")
        value, layer = tensors[entry.key], _dotted(entry.layer)
        if entry.kind == "up":
            scale = file.scale_of(entry.layer, entry.part, value.shape[1], alphas.get(entry.layer))
            value = value if scale == 1 else (value.float() * scale).to(value.dtype)
        part = {"down": "lora_A.weight", "up": "lora_B.weight", "diff": "diff"}[entry.kind]
        prefix = "transformer." if _first_block(layer)[0] in _ORIGINAL else "diffusion_model."
        state[f"{prefix}{layer}.{part}"] = value
    return state


def _dotted(layer: str) -> str:
    """A layer's name with its dots, which kohya's files write as underscores."""
    known = {name: name for name in (*_ORIGINAL, *(original for original, _ in _ORIGINAL.values()))}
    if _first_block(layer)[0] in known:
        return layer
    flat = {name.replace(".", "_"): name for name in known}
    found = re.search(r"(?<=_)\d+(?=_)", layer)
    first = f"{layer[: found.start()]}0{layer[found.end() :]}" if found else layer
    return _BLOCK.sub(found[0], flat[first], count=1) if found and first in flat else layer


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


# What adapters tune in a model's first block, by diffusers' names; and the authors' name of it, which is ComfyUI's, and
# which part of that it is where it is one of several.
_OWN = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
_BOTH = (*_OWN, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k")
_SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.norm_q", "attn.norm_k", "proj_out")
_FEED_FORWARD = ("net.0.proj", "net.2")
_ORIGINAL = {
    layer: original_name(kind, layer)
    for kind, layers in {
        "WanTransformer3DModel": [
            *(f"blocks.0.attn{n}.{name}" for n in (1, 2) for name in _OWN),
            *(f"blocks.0.ffn.{name}" for name in _FEED_FORWARD),
        ],
        "HunyuanVideoTransformer3DModel": [
            *(f"transformer_blocks.0.attn.{name}" for name in _BOTH),
            *(f"transformer_blocks.0.{ff}.{name}" for ff in ("ff", "ff_context") for name in _FEED_FORWARD),
            *(f"single_transformer_blocks.0.{name}" for name in _SINGLE),
        ],
        "MochiTransformer3DModel": [f"transformer_blocks.0.attn1.{name}" for name in _BOTH],
    }.items()
    for layer in layers
}
_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")


def _to_comfy(named: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    result: dict[str, dict[str, Tensor]] = {}
    fused: dict[str, dict[int, dict[str, Tensor]]] = {}
    for layer, parts in named.items():
        first, number = _first_block(layer)
        if first not in _ORIGINAL:
            raise ModelError(f"{layer} has no name in ComfyUI that is known here")
        name, part = _ORIGINAL[first]
        original = _BLOCK.sub(number, name, count=1)
        if part:
            fused.setdefault(original, {})[PARTS.index(part)] = parts
        else:
            result[original] = parts
    return result | {original: _fuse(members, _widths(original)) for original, members in fused.items()}


def _first_block(layer: str) -> tuple[str, str]:
    """A layer's name in the first block, and the number of its own block."""
    found = _BLOCK.search(layer)
    return _BLOCK.sub("0", layer, count=1), found[0] if found else ""


def _widths(original: str) -> int:
    """How many times as many rows as queries a layer has that projects several things at once: after queries, keys and
    values, HunyuanVideo's first single layer has the feed-forward layer, four times as wide."""
    return 7 if original.endswith("linear1") else 3


def _fuse(members: dict[int, dict[str, Tensor]], widths: int) -> dict[str, Tensor]:
    """One adapter over the parts of a layer that projects several things at once."""
    order = sorted(members)
    width = members[order[0]]["lora_B.weight"].shape[0]
    down = torch.cat([members[part]["lora_A.weight"] for part in order])
    up = torch.zeros(widths * width, len(down), dtype=down.dtype)
    column = 0
    for part in order:
        block = members[part]["lora_B.weight"]
        up[part * width : (part + 1) * width, column : column + block.shape[1]] = block
        column += block.shape[1]
    return {"lora_A.weight": down, "lora_B.weight": up}


def _from_comfy(original: str, parts: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The layers by diffusers' names that one of ComfyUI's stands for."""
    first, number = _first_block(original)
    found = {_BLOCK.sub(number, layer, count=1): part for layer, (name, part) in _ORIGINAL.items() if name == first}
    if not found:
        raise ModelError(f"diffusion_model.{original} is no layer that is known here")
    if len(found) == 1:
        return {next(iter(found)): parts}
    down, up = parts["lora_A.weight"], parts["lora_B.weight"]
    width = up.shape[0] // _widths(original)
    if up[len(PARTS[:3]) * width :].any():
        raise ModelError(f"{original} tunes the feed-forward layer within it too, which is not converted")
    result = {}
    for layer, part in found.items():
        block = up[PARTS.index(part) * width : (PARTS.index(part) + 1) * width]
        used = block.any(0) if block.any() else torch.ones(block.shape[1], dtype=torch.bool)
        result[layer] = {"lora_A.weight": down[used], "lora_B.weight": block[:, used]}
    return result


def _split_key(key: str) -> tuple[str, str]:
    layer, dot, part = key.partition(".lora_")
    if dot:
        return layer, f"lora_{part}"
    layer, _, part = key.rpartition(".")
    return layer, part
