"""An account of an adapter for a model: each of its tensors is applied, or left out for a reason that is told."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from radial.adapters.file import AdapterFile, Entry
from radial.errors import ModelError, some
from radial.models.original_names import Part, index_layers, plain_name

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Change:
    """What a file does to one of its layers, and which parts of the model that is.

    Attributes:
        kind: ``low_rank`` is put beside the weight; ``low_rank_exact`` (DoRA, Tucker), ``loha``, ``lokr`` and ``diff``
            are added to it.
        parameter: ``weight``, ``bias``, or nothing for a parameter that stands alone.
        keys: of the file, by kind.
    """

    layer: str
    kind: str
    parameter: str
    keys: Mapping[str, str]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Account:
    """What becomes of an adapter's file in one transformer.

    Attributes:
        part: which of a model's transformers it is.
        left_out: why, by key.
        tokens: the key of learned tokens by which a story is remembered, where it has some.
    """

    file: AdapterFile
    part: str
    changes: tuple[Change, ...]
    left_out: Mapping[str, str]
    tokens: str | None = None

    @property
    def applied(self) -> frozenset[str]:
        """The keys that act."""
        own = () if self.tokens is None else (self.tokens,)
        return frozenset((*own, *(key for change in self.changes for key in change.keys.values())))

    @property
    def summary(self) -> str | None:
        """How much of it acts, and what is left out for which reason; None where all of it acts."""
        if not self.left_out:
            return None
        by_reason: dict[str, set[str]] = defaultdict(set)
        layer_of = _layers_by_key(self.file)
        for key, reason in self.left_out.items():
            by_reason[reason].add(layer_of.get(key, key))
        told = "; ".join(f"{_some(names)}: {reason}" for reason, names in by_reason.items())
        layers = {entry.layer for entry in self.file.entries}
        acting = len({change.layer for change in self.changes})
        return f"{acting} of its {len(layers)} layers act; left out: {told}"


def account_for(
    file: AdapterFile, kind: str, shapes: Shapes, *, part: str = "transformer", packed: Collection[str] = (),
    linear: Collection[str] | None = None,
) -> Account:  # fmt: skip
    """What becomes of a file in a transformer.

    Args:
        kind: the transformer's class.
        shapes: of its parameters by name, without those of adapters.
        part: which of a model's two transformers it is.
        packed: parameters whose numbers are quantised in a file's own format.
        linear: layers that can carry a low-rank change beside their weight; None for all. To others it is added.

    Raises:
        ModelError: nothing of it fits, and why.
    """
    index = index_layers(kind, shapes)
    left_out = dict.fromkeys((key for key in file.unknown if key != "lokr_factor"), "no part of a LoRA that is known")
    layers: dict[str, dict[str, Entry]] = defaultdict(dict)
    tokens = None
    for entry in file.entries:
        if entry.kind == "tokens":
            if entry.shape[1:] == shapes.get("patch_embedding.weight", ())[:1]:
                tokens = entry.key
            else:
                left_out[entry.key] = "memory tokens of another model's width"
        elif entry.part == "text":
            left_out[entry.key] = "for a text encoder, which takes none here"
        elif entry.part and entry.part != part:
            continue  # the other transformer's
        else:
            layers[entry.layer][entry.kind] = entry
    changes: list[Change] = []
    for layer, entries in layers.items():
        changes_here = _changes_of(layer, entries)
        for found in changes_here:
            parts = _find(index, found) or ()
            beside = linear is None or all(part.layer in linear for part in parts)
            kind = found.kind if beside or found.kind != "low_rank" else "low_rank_exact"
            placed = replace(found, kind=kind, parts=parts)
            reason = _misfit(placed, entries, shapes, packed) if parts else "no such layer in this model"
            if reason is None:
                changes.append(placed)
            else:
                left_out |= dict.fromkeys(found.keys.values(), reason)
        used = {key for change in changes_here for key in change.keys.values()}
        left_out |= {entry.key: "a part without its other half" for entry in entries.values() if entry.key not in used}
    account = Account(file, part, tuple(changes), left_out, tokens)
    if not changes and any(entry.part in ("", part) for entry in file.entries):
        reasons = sorted(set(left_out.values()), key=list(left_out.values()).count, reverse=True)
        layer_of = _layers_by_key(file)
        layers_out = _some({layer_of.get(key, key) for key in left_out})
        raise ModelError(f"LoRA {file.path.name} does not fit this model: {layers_out}: {reasons[0]}")
    return account


def _changes_of(layer: str, entries: Mapping[str, Entry]) -> list[Change]:
    """What a layer's tensors are together, not yet placed."""
    keys = {kind: entry.key for kind, entry in entries.items()}
    found = []
    low = {k: v for k, v in keys.items() if k in ("down", "up", "mid", "alpha", "dora", "magnitude", "up_bias")}
    if low.keys() >= {"down", "up"}:
        kind = "low_rank_exact" if {"dora", "magnitude", "mid"} & low.keys() else "low_rank"
        found.append(Change(layer, kind, "weight", low, ()))
    elif (hada := {k: v for k, v in keys.items() if k.startswith("hada") or k == "alpha"}).keys() >= {
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"
    }:  # fmt: skip
        found.append(Change(layer, "loha", "weight", hada, ()))
    elif _is_lokr(keys):
        lokr = {k: v for k, v in keys.items() if k.startswith("lokr") or k == "alpha"}
        found.append(Change(layer, "lokr", "weight", lokr, ()))
    if "diff" in keys:
        found.append(Change(layer, "diff", "weight", {"diff": keys["diff"]}, ()))
    if "diff_b" in keys:
        found.append(Change(layer, "diff", "bias", {"diff": keys["diff_b"]}, ()))
    if "diff_m" in keys:
        found.append(Change(layer, "diff", "", {"diff": keys["diff_m"]}, ()))
    return found


def _is_lokr(keys: Collection[str]) -> bool:
    return all(f"lokr_{w}" in keys or {f"lokr_{w}_a", f"lokr_{w}_b"} <= set(keys) for w in ("w1", "w2"))


def _find(index: Mapping[str, tuple[Part, ...]], change: Change) -> tuple[Part, ...] | None:
    names = [change.layer]
    if not change.parameter:  # the modulation of a block, or of the head
        names = [f"{change.layer}.modulation", change.layer]
    elif change.kind == "diff" and change.parameter == "weight":  # also of a parameter that stands alone
        names = [change.layer, f"{change.layer}.modulation"]
    return next((index[plain_name(name)] for name in names if plain_name(name) in index), None)


def _misfit(change: Change, entries: Mapping[str, Entry], shapes: Shapes, packed: Collection[str]) -> str | None:
    """Why a change cannot be applied to the layers that it is for; None where it can."""
    by_key = {entry.key: entry.shape for entry in entries.values()}
    own = [part.parameter(change.parameter, shapes) for part in change.parts]
    if any(name not in shapes for name in own):
        return f"the model's layer has no {change.parameter or 'modulation'}"
    if change.kind != "low_rank" and any(name in packed for name in own):
        return "the model's weights are packed in a GGUF file, to which only plain LoRA is applied"
    if "up_bias" in change.keys and (len(change.parts) > 1 or change.kind != "low_rank"):
        return "a bias beside a change to a layer that has none here"
    whole = (change.parts[0].whole, *shapes[own[0]][1:])
    given = _shape_of(change, by_key)
    if given is None or math.prod(given) != math.prod(whole) or given[0] != whole[0]:
        shown = " x ".join(str(n) for n in given) if given else "none"
        return f"it is for {shown} numbers, the model's layer has {' x '.join(str(n) for n in whole)}"
    return None


def _shape_of(change: Change, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Of the weight that a change is for; None where its parts do not go together."""
    of = {kind: shapes[key] for kind, key in change.keys.items()}
    if change.kind == "diff":
        return of["diff"] or (1,)
    if change.kind.startswith("low_rank"):
        down, up = of["down"], of["up"]
        if len(down) < 2 or len(up) < 2 or math.prod(up[2:]) != 1:
            return None
        if "mid" in of:
            mid = of["mid"]
            return (up[0], down[1], *mid[2:]) if mid[:2] == (up[1], down[0]) else None
        return (up[0], *down[1:]) if up[1] == down[0] else None
    if change.kind == "loha":
        a, b = of["hada_w1_a"], of["hada_w1_b"]
        return None if "hada_t1" in of or a[1:] != b[:1] or of["hada_w2_a"][:1] != a[:1] else (a[0], *b[1:])
    first = of.get("lokr_w1") or (of["lokr_w1_a"][0], of["lokr_w1_b"][1])
    second = of.get("lokr_w2") or (of["lokr_w2_a"][0], *of["lokr_w2_b"][1:])
    return None if "lokr_t2" in of else (first[0] * second[0], first[1] * second[1], *second[2:])


def _layers_by_key(file: AdapterFile) -> dict[str, str]:
    return {entry.key: entry.layer for entry in file.entries}


def _some(names: set[str]) -> str:
    """Names in few words: those that differ in a block's number alone are one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        alike[re.sub(r"(?<=[._])\d+(?=[._]|$)", "*", name)].append(name)
    shown = [found[0] if len(found) == 1 else f"{pattern} ({len(found)})" for pattern, found in alike.items()]
    return some(shown, 4)
