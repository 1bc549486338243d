"""Transformers' weights by their authors' names, made of diffusers' by the rules the other way round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from radial.models.original_names import Part, original_layers


def original_state(kind: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file of the authors would hold of a transformer of a class with such weights."""
    layers = original_layers(kind, {name: tuple(value.shape) for name, value in own.items()})
    state: dict[str, Tensor] = {}
    for name, parts in layers.items():
        for parameter in ("weight", "bias", ""):
            names = [f"{part.layer}.{parameter}" if parameter else part.layer for part in parts]
            if all(n in own for n in names):
                pieces = [piece for n, part in zip(names, parts, strict=True) for piece in _pieces(own[n], part)]
                whole = torch.cat([piece for _, piece in sorted(pieces, key=lambda pair: pair[0])])
                state[f"{name}.{parameter}" if parameter else name] = whole.detach().clone()
    return state


def _pieces(own: Tensor, part: Part) -> list[tuple[int, Tensor]]:
    if own.ndim == 0 or len(part.rows) == 1:
        return [(part.rows[0][0], own)]
    lengths = [end - first for first, end in part.rows]
    return [(first, piece) for (first, _), piece in zip(part.rows, own.split(lengths), strict=True)]
