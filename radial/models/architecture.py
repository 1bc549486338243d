"""The transformers of named models: their classes, their configurations, and the shapes of their parameters."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from radial.errors import ModelError, some
from radial.models.checkpoint import read_config
from radial.models.original_names import Part, index_layers
from radial.models.spec import ModelSpec
from radial.models.table import MODELS
from radial.models.weights import Weight, Weights, read_weights, weights_in

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """A transformer before its weights.

    Attributes:
        kind: diffusers' class.
        config: what its constructor is given, as JSON; what is left out is the class's own.
        numbers: how many it holds, how many of those 8-bit weights would narrow, and both of its largest block.
        others: the model's other components: name, numbers, and how many would be narrowed.
    """

    kind: str
    config: str
    numbers: tuple[int, int, int, int] = (0, 0, 0, 0)
    others: tuple[tuple[str, int, int], ...] = ()

    @property
    def shapes(self) -> Shapes:
        """Of its parameters, by diffusers' names."""
        return _shapes(self.kind, self.config)

    @property
    def index(self) -> Mapping[str, tuple[Part, ...]]:
        """Its layers by every name that files know them by."""
        return _index(self.kind, self.config)

    @property
    def width(self) -> int | None:
        """Numbers of a token, where the configuration says it."""
        config = json.loads(self.config)
        heads, each = config.get("num_attention_heads"), config.get("attention_head_dim")
        return heads * each if isinstance(heads, int) and isinstance(each, int) else None


@functools.cache
def named_architectures() -> dict[str, Architecture]:
    """The transformers of models in the table, by the model's name, where files of them are known."""
    told = json.loads((files("radial.models") / "architectures.json").read_text())
    return {
        name: Architecture(
            one["class"], json.dumps(one["config"], sort_keys=True), tuple(one["numbers"]),
            tuple((part, *counts) for part, counts in one["others"].items()),
        )
        for name, one in told.items()
    }  # fmt: skip


def architecture_in(folder: Path, component: str = "transformer") -> Architecture:
    """The transformer that a checkpoint's folder describes.

    Raises:
        ModelError: it describes none.
    """
    config = read_config(folder / component)
    kind = config.get("_class_name")
    if not isinstance(kind, str):
        raise ModelError(f"{folder / component / 'config.json'} names no class")
    return Architecture(kind, json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, sort_keys=True))


def check_whole(folder: Path, component: str) -> None:
    """Make sure that a checkpoint holds every tensor of a transformer, in its shape: loaders fill in what is missing by
    chance, or stop at it without a name.

    Raises:
        ModelError: it does not.
    """
    held = {weight.name: weight.shape for weight in weights_in(folder).components.get(component, ())}
    shapes = architecture_in(folder, component).shapes
    missing = [name for name in shapes if name not in held]
    other = [
        f"{name} {held[name]}, not {shapes[name]}" for name in shapes if held.get(name, shapes[name]) != shapes[name]
    ]
    for names, what in ((missing, "lacks"), (other, "has in other shapes")):
        if names:
            raise ModelError(f"the {component} of {folder} {what} {some(names)}")


def named_weights(spec: ModelSpec) -> Weights | None:
    """What a named model's checkpoint holds, known without it: pieces of the right sizes, and the tensors of its own
    files where a spec has them. None for models without a name."""
    name = next((known.name for known in MODELS.values() if known.source == spec.source), "")
    if (one := named_architectures().get(name)) is None:
        return None
    whole, narrow, block, narrow_block = one.numbers
    pieces = [Weight("blocks.0.layers", (narrow_block, 1)), Weight("blocks.0.rest", (block - narrow_block,))]
    rest = -(-(whole - block) // block)  # each no larger than the largest block, which decides what a GPU must hold
    for index in range(1, rest + 1):
        pieces += [
            Weight(f"blocks.{index}.layers", ((narrow - narrow_block) // rest, 1)),
            Weight(f"blocks.{index}.rest", ((whole - block - narrow + narrow_block) // rest,)),
        ]
    names = ("transformer", "transformer_2") if spec.has_two_transformers else ("transformer",)
    others = {
        part: (Weight("layers.all", (thin, 1)), Weight("rest", (count - thin,))) for part, count, thin in one.others
    }
    own = {part: read_weights(file) for part, file in spec.own_weights.items()}
    return Weights(
        dict.fromkeys(names, tuple(pieces)) | others | own, json.loads(one.config) | {"_class_name": one.kind}
    )


@functools.lru_cache(maxsize=64)
def _shapes(kind: str, config: str) -> Shapes:
    import diffusers
    import torch
    from diffusers.models.modeling_utils import no_init_weights

    made = getattr(diffusers, kind, None)
    if made is None:
        raise ModelError(f"diffusers has no {kind}")
    try:
        with torch.device("meta"), no_init_weights():
            model = made.from_config(json.loads(config))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ModelError(f"a {kind} cannot be made of its configuration: {str(error).splitlines()[0][:200]}") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@functools.lru_cache(maxsize=64)
def _index(kind: str, config: str) -> Mapping[str, tuple[Part, ...]]:
    return index_layers(kind, _shapes(kind, config))
