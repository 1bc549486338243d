"""Adapter files as their trainers write them: tensors by the layer that they change and by what they are to it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from radial.errors import ModelError, first_line
from radial.models.weights import Weight, read_header, read_weights

# What stands behind a layer's name, and what the tensor is. PEFT puts an adapter's name before ``weight``.
_ENDINGS: tuple[tuple[str, str], ...] = (
    (r"[._]lora_A(?:\.\w+)??(?:\.weight)?|[._]lora_down\.weight|[._]lora\.down\.weight|"
     r"\.lora_linear_layer\.down\.weight|\.processor\.\w+_lora\.down\.weight", "down"),
    (r"[._]lora_B(?:\.\w+)??(?:\.weight)?|[._]lora_up\.weight|[._]lora\.up\.weight|"
     r"\.lora_linear_layer\.up\.weight", "up"),
    (r"[._]lora_B(?:\.\w+)?\.bias", "up_bias"),
    (r"[._]lora_mid\.weight", "mid"),
    (r"\.(?:lora_)?alpha", "alpha"),
    (r"\.dora_scale", "dora"),
    (r"\.lora_magnitude_vector(?:\.\w+)*", "magnitude"),
    (r"\.diff", "diff"),
    (r"\.diff_b", "diff_b"),
    (r"\.diff_m", "diff_m"),
    (r"\.w_norm", "diff"),
    (r"\.b_norm", "diff_b"),
    (r"\.(hada_w[12]_[ab]|hada_t[12])", ""),
    (r"\.(lokr_w[12](?:_[ab])?|lokr_t2)", ""),
    (r"(?<=story_memory)\.tokens", "tokens"),
)  # fmt: skip
_ENDING = tuple((re.compile(rf"(?P<layer>.+?)(?:{pattern})"), kind) for pattern, kind in _ENDINGS)
# Ways of changing a layer that are told by name and not applied.
_FOREIGN = re.compile(
    r".+\.(?P<kind>oft_\w+|boft_\w+|oft_diag|on_input|bias_indices|bias_values|scalar|ia3_\w+|[ab][12]\.weight|"
    r"vera_\w+|reshape_weight|set_weight)"
)
_FOREIGN_NAMES = {"oft": "OFT", "boft": "BOFT", "on": "IA3", "ia3": "IA3", "a1": "GLoRA", "a2": "GLoRA", "b1": "GLoRA",
                  "b2": "GLoRA", "vera": "VeRA"}  # fmt: skip
_SCALED = re.compile(r".*(scale_weight|weight_scale|scale_input|input_scale|scaled_fp8|comfy_quant)")
# What stands before a layer's name, outermost first; some files have several.
_PREFIX = re.compile(
    r"(?:base_model\.model\.|_orig_mod\.|module\.|lycoris_|lora_unet__?|lora_transformer_(?!2_)|lora_net_|"
    r"model\.diffusion_model\.|diffusion_model\.|transformer\.|transformer_1\.|(?P<second>transformer_2\.|pipe\.dit2\.|"
    r"lora_transformer_2_)|pipe\.dit\.|pipe\.|dit\.|model\.|unet\.|net\.)"
)
_TEXT = re.compile(
    r"(?:base_model\.model\.)?(?:lora_te\d?_|lora_llm|text_encoders?[._]|text_model\.|cond_stage_model\.)"
)


@dataclass(frozen=True)
class Entry:
    """A tensor of a file.

    Attributes:
        layer: what it changes, in the file's words without what stands before them.
        kind: ``down``, ``up``, ``mid``, ``alpha`` and ``dora``, ``magnitude`` of a low-rank change; ``diff``,
            ``diff_b``, ``diff_m`` added to a weight, a bias or a modulation; parts of LoHa and LoKr by their own names;
            ``tokens`` that are learned beside the layers.
        part: ``transformer``, ``transformer_2`` or ``text`` where the file says so, else nothing.
    """

    key: str
    layer: str
    kind: str
    part: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class AdapterFile:
    """An adapter's tensors by header, read when they are needed.

    Attributes:
        entries: what is known of each of its tensors.
        unknown: keys that are no part of an adapter as it is known here.
    """

    path: Path
    entries: tuple[Entry, ...]
    unknown: tuple[str, ...]
    metadata: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by key.

        Raises:
            ModelError: the file is corrupt.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"LoRA {self.path.name} cannot be read: {first_line(error)}") from error

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """What kinds of change it holds, the most frequent first."""
        forms = {"down": "LoRA", "dora": "DoRA", "magnitude": "DoRA", "mid": "Tucker", "diff": "weights added",
                 "diff_b": "biases added", "diff_m": "modulation added", "tokens": "memory tokens"}  # fmt: skip
        of_parts = {"hada": "LoHa", "lokr": "LoKr"}
        names = (forms.get(entry.kind) or of_parts.get(entry.kind[:4]) for entry in self.entries)
        return tuple(name for name, _ in Counter(name for name in names if name).most_common())

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its low-rank changes, the lowest first."""
        return tuple(sorted({entry.shape[0] for entry in self.entries if entry.kind == "down" and entry.shape}))

    def scale_of(self, layer: str, part: str, rank: int, alpha: float | None) -> float:
        """What a change of a rank is multiplied by: its own alpha over the rank, else what diffusers' metadata or
        PEFT's file beside it says, else one."""
        if alpha:  # 0 is none, as kohya has it
            return alpha / rank
        settings = self.peft_settings(part)
        ends = (f".{name.lstrip('^')}".replace("\\.", ".") for name in settings.get("alpha_pattern") or {})
        values = (settings.get("alpha_pattern") or {}).values()
        found = next((v for end, v in zip(ends, values, strict=True) if f".{layer}".endswith(end)), None)
        found = settings.get("lora_alpha", settings.get("alpha")) if found is None else found
        if not isinstance(found, (int, float)) or isinstance(found, bool):
            return 1.0
        return float(found) / (rank**0.5 if settings.get("use_rslora") else rank)

    def lokr_scale_of(self, layer: str, part: str, shapes: Mapping[str, tuple[int, ...]], alpha: float | None) -> float:
        """What LoKr's product is multiplied by, whose factors have these shapes by name: LyCORIS' alpha counts where a
        factor is of low rank; PEFT's always; that of a fork of musubi-tuner, which writes ``lokr_factor``, also where
        both are whole."""
        ranks = [shapes[f"lokr_{name}_b"][0] for name in ("w2", "w1") if f"lokr_{name}_b" in shapes]
        if ranks:
            return self.scale_of(layer, part, ranks[0], alpha)
        if "lokr_factor" in self.unknown:
            return self.scale_of(layer, part, max(shapes["lokr_w2"][:2]), alpha)
        rank = self.peft_settings(part).get("r")
        if isinstance(rank, int) and rank > 0 and alpha is None:
            return self.scale_of(layer, part, rank, None)
        return 1.0

    def peft_settings(self, part: str) -> dict[str, Any]:
        """What PEFT was told of the adapter, for one of a model's transformers; nothing where the file does not say."""
        if said := self._told_settings:
            own = {key.removeprefix(f"{part}."): value for key, value in said.items() if key.startswith(f"{part}.")}
            return own or {key.removeprefix("transformer."): value for key, value in said.items()}
        beside = self.path.parent / "adapter_config.json"
        return self._beside if self.path.name.startswith("adapter_model") and beside.is_file() else {}

    @cached_property
    def _told_settings(self) -> dict[str, Any]:
        try:
            said = json.loads(self.metadata.get("lora_adapter_metadata") or "{}")
        except (ValueError, RecursionError, TypeError):
            return {}
        return said if isinstance(said, dict) else {}

    @cached_property
    def _beside(self) -> dict[str, Any]:
        from radial.models.checkpoint import read_json

        return read_json(self.path.parent / "adapter_config.json")


def read_adapter(path: Path) -> AdapterFile:
    """What an adapter's file holds, by its header.

    Raises:
        ModelError: it cannot be read, or is no adapter.
    """
    try:
        metadata = read_header(path).get("__metadata__") or {}
        weights = read_weights(path)
    except (OSError, ValueError, RecursionError, ModelError) as error:
        raise ModelError(f"LoRA {path.name} cannot be read: {first_line(error)}") from error
    entries, unknown, foreign = [], [], set()
    for weight in weights:
        if _SCALED.fullmatch(weight.name):
            raise ModelError(
                f"LoRA {path.name} holds weights with scales apart ({weight.name}), which are not read: take the file "
                "in 16 bit"
            )
        if (match := _FOREIGN.fullmatch(weight.name)) is not None:
            foreign.add(_FOREIGN_NAMES.get(re.split(r"[_.]", match["kind"])[0], match["kind"]))
            continue
        entry = _entry_of(weight)
        if entry is None:
            unknown.append(weight.name)
        else:
            entries.append(entry)
    if foreign:
        raise ModelError(
            f"LoRA {path.name} changes layers by {', '.join(sorted(foreign))}, which is not applied here; LoRA, DoRA, "
            "LoHa, LoKr and differences of weights are"
        )
    if not entries:
        some = ", ".join(sorted(weight.name for weight in weights)[:2]) or "none"
        raise ModelError(f"{path.name} is no LoRA: its keys are like {some}")
    return AdapterFile(path, tuple(entries), tuple(unknown), metadata)


def _entry_of(weight: Weight) -> Entry | None:
    for pattern, kind in _ENDING:
        if (match := pattern.fullmatch(weight.name)) is not None:
            named = match["layer"]
            part = "text" if _TEXT.match(named) else ""
            while (prefix := _PREFIX.match(named)) is not None:
                named = named[prefix.end() :]
                part = "transformer_2" if prefix["second"] else "transformer" if "_1." in prefix[0] else part
            return Entry(weight.name, named, kind or match[2], part, weight.shape)
    return None
