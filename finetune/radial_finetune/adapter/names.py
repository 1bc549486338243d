"""What an adapter's layers are called: by diffusers, and by ComfyUI, which has the authors' names."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from radial.errors import ModelError
from radial.models.original_names import PARTS, original_name

Names = Literal["diffusers", "comfy"]


Parts = dict[str, Tensor]  # of the change of one layer, by what they are to it

_MAGNITUDE = {"diffusers": "lora_magnitude_vector", "comfy": "dora_scale"}  # DoRA's, of rows
# What adapters tune in a model's first block, by diffusers' names.
_OWN = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
_BOTH = (*_OWN, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k")
_SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.norm_q", "attn.norm_k", "proj_mlp", "proj_out")
_FEED_FORWARD = ("net.0.proj", "net.2")
_TUNED = {
    "WanTransformer3DModel": [
        *(f"blocks.0.attn{n}.{name}" for n in (1, 2) for name in _OWN),
        *(f"blocks.0.attn2.{name}" for name in ("add_k_proj", "add_v_proj", "norm_added_k")),
        *(f"blocks.0.ffn.{name}" for name in _FEED_FORWARD),
    ],
    "HunyuanVideoTransformer3DModel": [
        *(f"transformer_blocks.0.attn.{name}" for name in _BOTH),
        *(f"transformer_blocks.0.{ff}.{name}" for ff in ("ff", "ff_context") for name in _FEED_FORWARD),
        *(f"single_transformer_blocks.0.{name}" for name in _SINGLE),
    ],
    "MochiTransformer3DModel": [
        *(f"transformer_blocks.0.attn1.{name}" for name in _BOTH),
        *(f"transformer_blocks.0.{ff}.{name}" for ff in ("ff", "ff_context") for name in _FEED_FORWARD),
    ],
}
# The authors' name of each, which is ComfyUI's, and the mark behind it: which part of that layer it is, or ``swap``.
_ORIGINAL = {kind: {layer: original_name(kind, layer) for layer in layers} for kind, layers in _TUNED.items()}
_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")


def is_diffusers_layer(layer: str) -> bool:
    """Whether a layer is one of diffusers' names, of what adapters tune."""
    return any(_first_block(layer)[0] in table for table in _ORIGINAL.values())


def dotted_layer(layer: str) -> str:
    """A layer's name with its dots, which kohya's files write as underscores."""
    pairs = [pair for table in _ORIGINAL.values() for pair in table.items()]
    known = {name for own, (original, _) in pairs for name in (own, original)}
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
        ModelError: the keys are of neither kind, or a layer's parts cannot be put together or taken apart.
    """
    layers: dict[str, Parts] = {}
    for key, value in state.items():
        layer, part = _split_key(key)
        layers.setdefault(layer, {})[part] = value
    named: dict[str, Parts] = {}
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


def _kind_of(layers: Collection[str]) -> str:
    """The class whose layers these are, by diffusers' names."""
    firsts = {_first_block(layer)[0]: layer for layer in layers}
    kinds = [kind for kind, table in _ORIGINAL.items() if firsts.keys() <= table.keys()]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise ModelError(f"{next(iter(layers))} may be of {' or of '.join(kinds)}: the file tunes no attention to tell")
    odd = (layer for first, layer in firsts.items() if not any(first in table for table in _ORIGINAL.values()))
    raise ModelError(f"{next(odd, next(iter(layers)))} has no name in ComfyUI that is known here")


def _to_comfy(named: dict[str, Parts]) -> dict[str, Parts]:
    table = _ORIGINAL[_kind_of(named)]
    result: dict[str, Parts] = {}
    fused: dict[str, dict[int, Parts]] = {}
    for layer, parts in named.items():
        first, number = _first_block(layer)
        name, mark = table[first]
        original = _BLOCK.sub(number, name, count=1)
        if mark in PARTS:
            fused.setdefault(original, {})[PARTS.index(mark)] = parts
        else:
            result[original] = _rows_swapped(layer, parts) if mark == "swap" else parts
    result |= {original: _fuse(original, members) for original, members in fused.items()}
    return {layer: _magnitude_as("comfy", parts) for layer, parts in result.items()}


def _from_comfy(original: str, parts: Parts) -> dict[str, Parts]:
    """The layers by diffusers' names that one of ComfyUI's stands for."""
    first, number = _first_block(original)
    found = {
        _BLOCK.sub(number, layer, count=1): mark
        for table in _ORIGINAL.values() for layer, (name, mark) in table.items() if name == first
    }  # fmt: skip
    if not found:
        raise ModelError(f"diffusion_model.{original} is no layer that is known here")
    parts = _magnitude_as("diffusers", parts)
    (layer, mark), *more = found.items()
    if more:
        return _split(original, parts, {layer: PARTS.index(mark) for layer, mark in found.items()})
    return {layer: _rows_swapped(layer, parts) if mark == "swap" else parts}


def _magnitude_as(form: Names, parts: Parts) -> Parts:
    """DoRA's magnitudes by the name and the shape that a program has them in."""
    given = next((parts[name] for name in _MAGNITUDE.values() if name in parts), None)
    if given is None:
        return parts
    others = {name: value for name, value in parts.items() if name not in _MAGNITUDE.values()}
    return others | {_MAGNITUDE[form]: given.reshape(-1, 1) if form == "comfy" else given.flatten()}


def _rows_swapped(layer: str, parts: Parts) -> Parts:
    """The change of a layer whose two halves stand the other way round."""
    _check_rows(layer, parts)
    return {
        name: torch.cat(value.chunk(2)[::-1]) if name != "lora_A.weight" else value for name, value in parts.items()
    }


def _check_rows(layer: str, parts: Parts) -> None:
    if not {"lora_A.weight", "lora_B.weight"} <= parts.keys():
        raise ModelError(f"{layer} has another shape in ComfyUI, in which only LoRA and DoRA can be rewritten")


def _width(part: int, rows: int) -> int:
    """The rows of queries, where a part has so many: the feed-forward layer's is four times as wide."""
    return rows // 4 if PARTS[part] == "mlp" else rows


def _end(part: int) -> int:
    """How many times the rows of queries lie before the end of a part."""
    return part + (4 if PARTS[part] == "mlp" else 1)


def _whole(original: str) -> tuple[int, ...]:
    """The parts of a layer that projects several things at once: after queries, keys and values, HunyuanVideo's single
    blocks have the feed-forward layer."""
    return (0, 1, 2, 3) if original.endswith("linear1") else (0, 1, 2)


def _fuse(original: str, members: dict[int, Parts]) -> Parts:
    """One adapter over the parts of a layer that projects several things at once."""
    order = sorted(members)
    for parts in members.values():
        _check_rows(original, parts)
    width = _width(order[0], len(members[order[0]]["lora_B.weight"]))
    down = torch.cat([members[part]["lora_A.weight"] for part in order])
    up = torch.zeros(_end(_whole(original)[-1]) * width, len(down), dtype=down.dtype)
    column = 0
    for part in order:
        block = members[part]["lora_B.weight"]
        up[part * width : _end(part) * width, column : column + block.shape[1]] = block
        column += block.shape[1]
    fused = {"lora_A.weight": down, "lora_B.weight": up}
    magnitudes = [members[part].get(_MAGNITUDE["diffusers"]) for part in _whole(original) if part in members]
    if any(magnitude is not None for magnitude in magnitudes):
        whole = [magnitude for magnitude in magnitudes if magnitude is not None]
        if len(whole) != len(_whole(original)):
            raise ModelError(
                f"{original} is one layer in ComfyUI, and DoRA changes only a part of it, which cannot be written as "
                'one; tune with layers = "blocks", or with LoRA'
            )
        fused[_MAGNITUDE["diffusers"]] = torch.cat(whole)
    return fused


def _split(original: str, parts: Parts, layers: dict[str, int]) -> dict[str, Parts]:
    """The parts of such an adapter, each with the ranks that act on it."""
    _check_rows(original, parts)
    down, up, magnitude = parts["lora_A.weight"], parts["lora_B.weight"], parts.get(_MAGNITUDE["diffusers"])
    width = len(up) // _end(_whole(original)[-1])
    result = {}
    for layer, part in layers.items():
        rows = slice(part * width, _end(part) * width)
        block = up[rows]
        if PARTS[part] == "mlp" and magnitude is None and not block.any():
            continue  # it tunes attention alone
        used = block.any(0) if block.any() else torch.ones(block.shape[1], dtype=torch.bool)
        result[layer] = {"lora_A.weight": down[used], "lora_B.weight": block[:, used]}
        if magnitude is not None:
            result[layer][_MAGNITUDE["diffusers"]] = magnitude[rows]
    return result


def _first_block(layer: str) -> tuple[str, str]:
    """A layer's name in the first block, and the number of its own block."""
    found = _BLOCK.search(layer)
    return _BLOCK.sub("0", layer, count=1), found[0] if found else ""


def _split_key(key: str) -> tuple[str, str]:
    layer, dot, part = key.partition(".lora_")
    if dot:
        return layer, f"lora_{part}"
    layer, _, part = key.rpartition(".")
    return layer, part
