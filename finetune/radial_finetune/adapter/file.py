"""An adapter's file.

Its metadata says what it was made for, and generation sets itself accordingly. Alpha is multiplied in, so that every
reader scales it alike; metadata keeps what it was.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from radial.adapters.file import AdapterFile
from radial.attention.story.tokens import MEMORY_TOKENS
from radial.errors import ModelError
from radial.files import publish
from radial.models.lora_settings import METADATA_KEY
from radial_finetune.adapter.names import dotted_layer, is_diffusers_layer
from radial_finetune.adapter.place import ADAPTER
from radial_finetune.data.cache import save_tensors

RUN_KEY = "radial_run"  # in a file's metadata: the run that it came from
_OWN = re.compile(r"\.(lora_|lokr_)")
# The factors that a change's scale is multiplied into.
_SCALED = re.compile(r"\.(lora_B\.weight|lokr_w1|lokr_w1_b)$")


def is_norm(name: str) -> bool:
    """Whether a parameter that is tuned is a model's own, of a norm, and no adapter's."""
    return _OWN.search(name) is None and name != MEMORY_TOKENS


def exported_name(name: str) -> str:
    """A parameter's name in files."""
    if is_norm(name):
        return f"transformer.{name.removesuffix('.weight')}.diff"
    plain = name.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")
    return f"transformer.{plain.replace('.lora_magnitude_vector.weight', '.lora_magnitude_vector')}"


def is_scaled(key: str) -> bool:
    """Whether the scale is multiplied into the tensor of that name in files."""
    return _SCALED.search(key) is not None


def export_state(parameters: dict[str, Tensor], before: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The adapter by diffusers' names. Of norms, what was added to the weights they had ``before``."""
    state = {}
    for name, value in parameters.items():
        tensor, key = value.detach().float().cpu(), exported_name(name)
        if is_norm(name):
            state[key] = tensor - before[name].float().cpu()
        else:
            state[key] = (tensor * scale if is_scaled(key) else tensor).clone()
    return state


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
    """An adapter's changes with alpha multiplied in, their layers named with dots: by diffusers' names under
    ``transformer.``, by the authors' under ``diffusion_model.``

    Raises:
        ModelError: it changes layers in another way than LoRA, DoRA of rows, LoKr and differences do, or brings tokens.
    """
    tensors, state = file.tensors(), {}
    alphas = {e.layer: float(tensors[e.key]) for e in file.entries if e.kind == "alpha"}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for entry in file.entries:
        shapes.setdefault(entry.layer, {})[entry.kind] = entry.shape
    for entry in file.entries:
        if entry.kind == "alpha":
            continue
        value, alpha = tensors[entry.key], alphas.get(entry.layer)
        if entry.kind == "up":
            value = _scaled(value, file.scale_of(entry.layer, entry.part, value.shape[1], alpha))
        elif entry.kind in ("lokr_w1", "lokr_w1_b"):
            value = _scaled(value, file.lokr_scale_of(entry.layer, entry.part, shapes[entry.layer], alpha))
        elif entry.kind in ("magnitude", "dora") and (value.ndim < 2 or len(value) > 1):
            value = value.flatten()
        elif entry.kind == "tokens":
            raise ModelError(f"{file.path.name} brings memory tokens, which other programs do not know: make stories "
                             "with it as it is")  # fmt: skip
        elif entry.kind not in ("down", "diff", "lokr_w1_a", "lokr_w2", "lokr_w2_a", "lokr_w2_b"):
            by = "magnitudes of columns" if entry.kind in ("magnitude", "dora") else entry.kind
            raise ModelError(
                f"{file.path.name} changes {entry.layer} by {by}; LoRA, DoRA of rows and LoKr are converted"
            )
        layer = dotted_layer(entry.layer)
        prefix = "transformer." if is_diffusers_layer(layer) else "diffusion_model."
        part = {"down": "lora_A.weight", "up": "lora_B.weight"}.get(entry.kind, entry.kind)
        part = "lora_magnitude_vector" if entry.kind in ("magnitude", "dora") else part
        state[f"{prefix}{layer}.{part}"] = value
    return state


def _scaled(value: Tensor, scale: float) -> Tensor:
    return value if scale == 1 else (value.float() * scale).to(value.dtype)
