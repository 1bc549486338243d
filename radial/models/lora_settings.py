"""Adapter files, and what they say they were made for: generation takes it over unless the user says otherwise."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from radial.errors import ModelError, RequestError, first_line
from radial.files import BUNDLED, bundled_file, bundled_names
from radial.models.spec import ModelSpec, Sampler
from radial.models.step_caches import CacheWord
from radial.plans.layout import BlockSize, FarField, TokenOrder
from radial.plans.settings import Decay, DenseCount, Kind, SinkFrames, SkipWidth
from radial.plans.story.memory import StoryMemory

METADATA_KEY = "radial"
_STEPS = ("num_inference_steps", "sampler", "guidance_scale", "flow_shift", "dense_steps", "dense_every")
_Text = Annotated[str, Field(max_length=2000)]
_Frames = Annotated[int, Field(ge=1, le=4097)]


class Lora(BaseModel):
    """An adapter file, or ``bundled:NAME`` for one that comes with the package, how strongly it acts, and on which of
    two transformers; where that is open, the file and its name say it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096)

    path: str
    weight: float = Field(1.0, ge=-10, le=10)
    expert: Literal["high", "low"] | None = None

    @model_serializer(mode="wrap")
    def _leave_out_what_is_open(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As before there were two transformers, so that what was begun then is known again."""
        return {name: value for name, value in dump(self).items() if name != "expert" or value is not None}

    def __str__(self) -> str:
        """As the command line takes it."""
        weight = "" if self.weight == 1 else f":{self.weight:g}"
        return f"{self.path}{weight}{'' if self.expert is None else f'@{self.expert}'}"


class AdapterSettings(BaseModel):
    """Attributes: what the adapter was tuned on and for; None where its file does not say.

    ``target_frames`` is the longest clip it was tuned for, ``tuned_frames`` all of their lengths, ``native_frames`` the
    model's own; ``expert`` which of a model's two transformers it belongs to, ``high`` or ``low`` noise; ``flow_shift``
    the schedule it was tuned on. Of one that was distilled to few steps, ``num_inference_steps`` is how many, with
    which ``sampler`` and ``guidance_scale`` they are made. Of one by which a model makes stories chunk by chunk,
    ``memory`` is what a chunk sees of those before.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    base_model: _Text | None = None
    rank: Annotated[int, Field(ge=1, le=65_536)] | None = None
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    native_frames: _Frames | None = None
    target_frames: _Frames | None = None
    tuned_frames: Annotated[tuple[_Frames, ...], Field(max_length=64, strict=False)] = ()
    trigger: _Text = ""
    expert: Literal["high", "low"] | None = None
    attention: Kind | None = None
    decay: Decay | None = None
    skip_width: SkipWidth | None = None
    sink_frames: SinkFrames | None = None
    dense_layers: DenseCount | None = None
    dense_steps: DenseCount | None = None
    dense_every: DenseCount | None = None
    block_size: BlockSize | None = None
    far_field: FarField | None = None
    token_order: TokenOrder | None = None
    riflex: bool = False
    flow_shift: Annotated[float, Field(gt=0, le=100)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    sampler: Sampler | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    memory: StoryMemory | None = None

    def covers(self, num_frames: int) -> bool:
        """Whether clips of this length lie between those that it was tuned on; of a file that names one length, whether
        it is that."""
        return bool(self.lengths) and min(self.lengths) <= num_frames <= max(self.lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths it was tuned on, in frames."""
        return self.tuned_frames or ((self.target_frames,) if self.target_frames else ())

    def sampled_as(self, other: AdapterSettings) -> AdapterSettings:
        """The same, and the steps of another that was distilled to them."""
        return self.model_copy(update={name: getattr(other, name) for name in _STEPS})

    def check_cache(self, word: CacheWord) -> None:
        """Make sure that a request's cache goes with it.

        Raises:
            RequestError: it was distilled to few steps.
        """
        if word != "off" and self.num_inference_steps is not None:
            raise RequestError(
                f"cache {word} is not for an adapter that was distilled to {self.num_inference_steps} steps: each "
                "changes the clip too much to be left out; take cache off"
            )

    def take_over(self, spec: ModelSpec, num_inference_steps: int) -> dict[str, Any]:
        """What a request for a model takes over of this where it leaves it open, by the request's names."""
        taken = {
            "num_frames": self.target_frames, "attention": self.attention, "decay": self.decay,
            "sink_frames": self.sink_frames, "skip_width": self.skip_width, "dense_layers": self.dense_layers,
            "block_size": self.block_size, "far_field": self.far_field, "token_order": self.token_order,
            "riflex": self.riflex, "flow_shift": self.flow_shift, "sampler": self.sampler,
            "dense_every": self.dense_every,
            "guidance_scale": self.guidance_scale,
            "guidance_scale_2": self.guidance_scale if spec.has_two_transformers else None,
            "dense_steps": self.dense_steps and spec.dense_share(self.dense_steps, num_inference_steps),
        }  # fmt: skip
        return {name: value for name, value in taken.items() if value is not None}


def adapter_file(path: str) -> Path:
    """The file of an adapter; ``bundled:NAME`` is one that comes with the package."""
    return bundled_file(path, "adapters", "adapter")


def bundled_adapters() -> list[str]:
    """The names of the adapters that come with the package."""
    return bundled_names("adapters")


def check_adapter_file(path: Path) -> None:
    """Make sure that there is an adapter's file, before a model is loaded for it.

    Raises:
        ModelError: it is missing, pickled or broken, or says of itself what cannot be.
    """
    from safetensors import SafetensorError, safe_open

    from radial.models.weights import read_header

    if path.suffix != ".safetensors":
        raise ModelError(f"LoRA {path.name} is not a safetensors file; safetensors only")
    if not path.is_file():
        raise ModelError(f"no LoRA file {path}")
    try:
        read_header(path)
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"LoRA {path.name} is broken: {first_line(error)}") from error
    read_adapter_settings(path)


def read_adapter_settings(path: Path) -> AdapterSettings | None:
    """The settings in a safetensors file's header; None where there are none, or no such file.

    Raises:
        ModelError: a setting is none that can be.
    """
    from radial.models.weights import read_header

    try:
        content = json.loads(read_header(path).get("__metadata__", {}).get(METADATA_KEY, ""))
    except RecursionError as error:
        raise ModelError(f"{path.name} says of itself what cannot be read") from error
    except (OSError, ValueError, TypeError, AttributeError, struct.error):
        return None
    if not isinstance(content, dict):
        return None
    try:
        return AdapterSettings.model_validate({name: value for name, value in content.items() if value is not None})
    except ValidationError as error:
        name, value = error.errors()[0]["loc"][0], error.errors()[0]["input"]
        raise ModelError(f"{path.name} says {name} = {repr(value)[:80]} of itself, which cannot be") from error


def parse_lora(text: str, *, is_name: bool = False) -> dict[str, Any]:
    """FILE, FILE:WEIGHT, and either with @high or @low behind it, as fields of a :class:`Lora`.

    Args:
        is_name: whether FILE is a name from elsewhere: no file is looked for.

    Raises:
        RequestError: the weight is no number.
    """
    if not is_name and Path(text).exists():
        return {"path": text}
    rest, at, expert = text.rpartition("@")
    fields: dict[str, Any] = {"expert": expert} if at and expert in ("high", "low") else {}
    rest = rest if fields else text
    path, colon, weight = rest.rpartition(":")
    if not colon or (not is_name and Path(rest).exists()) or path + colon == BUNDLED:
        return {"path": rest} | fields
    try:
        return {"path": path, "weight": float(weight)} | fields
    except ValueError:
        raise RequestError(
            f"lora must be FILE, FILE:WEIGHT with a number as weight, or one of them with @high or @low, not {text!r}"
        ) from None
