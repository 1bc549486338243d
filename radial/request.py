"""One clip as asked for: the object that CLI, studio, REST, jobs and receipts share."""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from radial.controls import check_controls, check_in_time, check_together, task_of
from radial.errors import RequestError, explain_all
from radial.input_files import Ground, Keyframe, check_input_files, several
from radial.models.find import check_positions, find_model, hub_file
from radial.models.lora_settings import AdapterSettings, Lora, adapter_file, read_adapter_settings
from radial.models.spec import ModelSpec, Sampler, Task
from radial.models.step_caches import CacheWord
from radial.plans.layout import BlockSize, FarField, TokenGrid, TokenOrder
from radial.plans.pattern import Variant
from radial.plans.settings import (
    AttentionKind,
    AttentionSettings,
    Decay,
    DenseCount,
    Density,
    EarlyDensity,
    SinkFrames,
    SkipWidth,
    TargetShare,
    TargetSpeed,
    measured_policy,
)
from radial.timed_prompts import MAX_PROMPTS, check_timed, split_time

Positions = Literal["model", "riflex", "interpolate", "ntk", "yarn"]
MAX_SEED = 2**53 - 1  # what JSON readers hold exactly
MAX_FRAMES = 4097
MAX_LORAS = 32
MAX_IMAGES = 64  # references, and keyframes
_LATER = (
    "sink_frames", "variant", "skip_width", "true_cfg_scale", "image_ground", "positions", "guidance_start",
    "guidance_end", "cache", "far_field", "token_order", "decoder", "batched_guidance", "then", "control_video", "mask",
    "keep_unmasked", "references", "strength", "keyframes", "density", "face_video", "background_video", "policy",
    "enhance", "original_prompt", "dense_every", "dense_above", "early_density", "target_share", "target_speed",
)  # fmt: skip


class GenerationRequest(BaseModel):
    """What to generate. Fields left at None take the model's own value; :meth:`resolve` fills them in.

    Raises:
        pydantic.ValidationError: a field breaks its rule; :func:`make_request` raises it as a RequestError.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=20_000)

    prompt: str
    negative_prompt: str | None = None
    model: str = "tiny"
    height: Annotated[int, Field(ge=16, le=8192)] | None = None
    width: Annotated[int, Field(ge=16, le=8192)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    fps: Annotated[int, Field(ge=1, le=240)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    guidance_scale_2: Annotated[float, Field(ge=0, le=100)] | None = None
    true_cfg_scale: Annotated[float, Field(ge=1, le=100)] | None = None
    sampler: Sampler | None = None
    flow_shift: Annotated[float, Field(gt=0, le=100)] | None = None
    image: str | None = None
    last_image: str | None = None
    extend: str | None = None
    image_fit: Literal["crop", "pad", "stretch"] = "crop"
    image_ground: Ground = "black"
    snap: bool = False
    riflex: bool | None = None
    positions: Positions | None = None
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] = -1
    num_videos: Annotated[int, Field(ge=1, le=1000)] = 1
    attention: AttentionKind | None = None
    decay: Decay | None = None
    dense_layers: DenseCount | None = None
    dense_steps: DenseCount | None = None
    dense_last_steps: DenseCount | None = None
    block_size: BlockSize | None = None
    loras: Annotated[tuple[Lora, ...], Field(max_length=MAX_LORAS)] = ()
    long_adapter: bool = True
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    precision: Literal["full", "eight_bit", "eight_bit_weights"] = "full"
    memory: Literal["auto", "full", "balanced", "low", "lowest"] = "auto"
    sink_frames: SinkFrames | None = None
    variant: Variant | None = None
    skip_width: SkipWidth | None = None
    far_field: FarField | None = None
    token_order: TokenOrder | None = None
    density: Density | None = None
    dense_every: DenseCount | None = None
    dense_above: Annotated[float, Field(ge=0, le=1000)] | None = None
    early_density: EarlyDensity | None = None
    policy: Annotated[str, Field(max_length=4096)] | None = None
    target_share: TargetShare | None = None
    target_speed: TargetSpeed | None = None
    guidance_start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    guidance_end: Annotated[float, Field(gt=0, le=1)] = 1.0
    cache: CacheWord = "off"
    then: Annotated[tuple[str, ...], Field(max_length=MAX_PROMPTS - 1)] = ()
    decoder: Annotated[str, Field(max_length=4096)] = "full"
    batched_guidance: bool = False
    control_video: str | None = None
    mask: str | None = None
    keep_unmasked: bool = True
    references: Annotated[tuple[str, ...], Field(max_length=MAX_IMAGES)] = ()
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    keyframes: Annotated[tuple[Keyframe, ...], Field(max_length=MAX_IMAGES)] = ()
    face_video: str | None = None
    background_video: str | None = None
    enhance: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    original_prompt: str | None = None

    @field_validator("references", "keyframes", mode="before")
    @classmethod
    def _one_alone(cls, given: Any) -> Any:
        return several(given)

    @field_validator("prompt")
    @classmethod
    def _prompt_says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError('must not be empty; say what the clip shows, for example "a red circle rises"')
        return prompt

    @field_validator("then", mode="before")
    @classmethod
    def _one_a_line(cls, then: Any) -> Any:
        return [line for line in then.splitlines() if line.strip()] if isinstance(then, str) else then

    @field_validator("then")
    @classmethod
    def _what_follows_says_something(cls, then: tuple[str, ...]) -> tuple[str, ...]:
        if any(not split_time(text)[1].strip() for text in then):
            raise ValueError("must not hold an empty prompt; say what the clip shows next")
        return then

    @model_validator(mode="after")
    def _images_go_together(self) -> GenerationRequest:
        if self.image is not None and self.extend is not None:
            raise ValueError("image and extend exclude each other: a clip starts from one of them")
        if self.last_image is not None and not self.starts_from_image:
            raise ValueError("last_image needs image or extend: a clip that ends on an image starts from one too")
        check_together(self)
        return self

    @model_validator(mode="after")
    def _positions_are_of_one_kind(self) -> GenerationRequest:
        if self.riflex and self.positions not in (None, "riflex"):
            raise ValueError(f"riflex and positions {self.positions} exclude each other: give one of them")
        return self

    @model_validator(mode="after")
    def _seeds_stay_in_range(self) -> GenerationRequest:
        if self.seed + self.num_videos - 1 > MAX_SEED:
            raise ValueError(f"seed {self.seed} leaves no room for {self.num_videos} videos below {MAX_SEED}")
        return self

    def with_values(self, **changes: Any) -> GenerationRequest:
        """The same request with other values, under the same rules as any.

        Raises:
            RequestError: one line that names each field, the value and the rule.
        """
        return make_request(**self.model_dump() | changes)

    def resolve(self) -> GenerationRequest:
        """The same request with every open field filled in: the model's defaults, and a drawn seed for -1.

        A clip beyond the native length takes the model's own adapter for that, where there is one that was tuned for
        such lengths, unless ``long_adapter`` is off.

        Raises:
            RequestError: the model is unknown, or cannot make this size.
        """
        spec = find_model(self.model)
        check_controls(self, spec)
        sampler = self.sampler or "model"
        if not spec.is_flow and (sampler != "model" or self.flow_shift is not None):
            given = f"sampler {sampler}" if sampler != "model" else f"flow_shift {self.flow_shift:g}"
            raise RequestError(f"{given} is for flow models, and {spec.name} is none or has its own; leave it out")
        spec.check_given(self.model_dump())
        if self.snap and self.num_frames is not None:
            _, _, num_frames = spec.snap_size(spec.height, spec.width, self.num_frames)
            if num_frames != self.num_frames:
                return self.with_values(num_frames=num_frames).resolve()
        if self._wants_long_adapter(spec):
            return self.with_values(loras=[{"path": spec.long_adapter, "weight": 1.0}]).resolve()
        # What is resolved once is not read again: an adapter's file may have changed meanwhile.
        tuned = (None if self.is_resolved else self.tuned_settings()) or AdapterSettings()
        steps = self.num_inference_steps or tuned.num_inference_steps or spec.num_inference_steps
        num_frames = self.num_frames or tuned.target_frames or spec.num_frames
        pattern, schedule = spec.preset(num_frames, steps)
        picture = (self.height or spec.height, self.width or spec.width)
        open_fields = {
            "negative_prompt": spec.negative_prompt,
            "height": spec.height,
            "width": spec.width,
            "num_frames": num_frames,
            "fps": spec.fps,
            "num_inference_steps": steps,
            "guidance_scale": spec.guidance_for(self.starts_from_image),
            "guidance_scale_2": spec.guidance_scale_2,
            "sampler": "model",
            "attention": "radial",
            "flow_shift": None if self._came_resolved else spec.shift_for(*picture, self.starts_from_image),
            "riflex": False,
            "block_size": spec.block_size,
            **AttentionSettings.as_before(),
            **asdict(pattern),
            **schedule.dense_counts,
        } | tuned.take_over(spec, steps)
        if self.attention == "adaptive":
            columns = spec.takes_columns and not self.then and not self.keyframes
            open_fields["far_field"] = "mean"
            open_fields["token_order"] = "columns" if columns else "raster"
            open_fields["dense_layers"] = max(1, schedule.dense_layers)
        measured = None if self.policy is None else measured_policy(self.policy)
        if measured is not None:
            open_fields |= measured.open_fields(self.target_speed)
        filled: dict[str, Any] = {name: value for name, value in open_fields.items() if getattr(self, name) is None}
        if self.seed < 0:
            filled["seed"] = secrets.randbelow(2**31)
        resolved = self.with_values(**filled)
        if self.snap:
            whole = (resolved.clip_height, resolved.clip_width, resolved.clip_frames)
            names = ("height", "width", "num_frames")
            resolved = resolved.with_values(**dict(zip(names, spec.snap_size(*whole), strict=True)))
        spec.check_size(resolved.clip_height, resolved.clip_width, resolved.clip_frames)
        size = (resolved.clip_height, resolved.clip_width)
        if self.starts_from_image and (fitted := spec.fitted(*size, snap=self.snap)) != size:
            return resolved.with_values(height=fitted[0], width=fitted[1])
        if (kind := resolved.stretched_positions) is not None:
            check_positions(spec, kind)
        if self.then and resolved.token_order not in (None, "raster"):
            raise RequestError(f"then does not go with token_order {resolved.token_order}: take raster")
        check_in_time(resolved, spec)
        check_timed(self.then, spec, resolved.clip_frames, resolved.fps or spec.fps, spec.pipeline_for(self.task))
        spec.step_cache(self.cache, self.task, steps)
        tuned.check_cache(self.cache)
        if measured is not None:
            measured.check(spec.name, resolved.grid(spec), resolved.attention_settings.model_dump())
        return resolved

    def later_fields(self) -> set[str]:
        """Fields that came with later versions and say nothing here: digests leave them out, so that what was begun
        before is known again."""
        return {name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}

    def check_files(self, *, by_head: bool = False) -> None:
        """Make sure that the files it starts from and ends on are there, and of the kinds that it takes them for.

        Args:
            by_head: look at how files begin alone; else masks are read, and what is black all over is none.

        Raises:
            RequestError: one is not.
        """
        if self.decoder not in ("full", "tiny") and hub_file(self.decoder) is None and not os.path.isfile(self.decoder):
            raise RequestError(
                f"decoder must be full, tiny, a .safetensors file, or one on the hub as org/name/file.safetensors, not "
                f"{self.decoder[:200]!r}: there is no such file"
            )
        check_input_files(self.model_dump(), by_head=by_head)

    def singles(self) -> tuple[GenerationRequest, ...]:
        """A request for each video of a resolved one, whose receipt repeats that video alone."""
        return tuple(
            self.model_copy(update={"seed": self.seed + index, "num_videos": 1}) for index in range(self.num_videos)
        )

    def tuned_settings(self) -> AdapterSettings | None:
        """What the first adapter that says so was tuned for, in the steps of the first that was distilled to few."""
        read = (read_adapter_settings(adapter_file(lora.path)) for lora in self.loras)
        found = [settings for settings in read if settings is not None]
        few = next((settings for settings in found if settings.num_inference_steps is not None), None)
        return found[0].sampled_as(few) if few is not None else next(iter(found), None)

    def _wants_long_adapter(self, spec: ModelSpec) -> bool:
        frames = self.num_frames or spec.num_frames
        if not self.long_adapter or spec.long_adapter is None or self.loras or frames <= spec.native_frames:
            return False
        tuned = read_adapter_settings(adapter_file(spec.long_adapter))
        return tuned is not None and tuned.covers(frames)

    @property
    def starts_from_image(self) -> bool:
        """Whether the clip starts from an image, or from another clip's last frame."""
        return self.image is not None or self.extend is not None

    @property
    def task(self) -> Task:
        """What the clip is made from."""
        return task_of(self)

    @property
    def computed_steps(self) -> int:
        """Denoising steps of a resolved request that are computed: making a clip over leaves the first ones out."""
        assert self.num_inference_steps is not None, "resolve the request first"
        return int(self.num_inference_steps * (1.0 if self.strength is None else self.strength))

    @property
    def stretched_positions(self) -> Literal["riflex", "interpolate", "ntk", "yarn"] | None:
        """What is done to positions along time; None where they are the model's own."""
        if self.positions is None:
            return "riflex" if self.riflex else None
        return None if self.positions == "model" else self.positions

    @property
    def guided_steps(self) -> range:
        """The steps of a resolved request in which guidance is computed, rounded as diffusers' guiders round them."""
        assert self.num_inference_steps is not None, "resolve the request first"
        first, end = (
            int(share * self.num_inference_steps + 1e-9) for share in (self.guidance_start, self.guidance_end)
        )
        return range(first, end)

    def is_guided(self, spec: ModelSpec) -> bool:
        """Whether the transformer of a resolved request is asked twice a step, with the prompt and without it."""
        embedded = spec.guidance_is_embedded
        return ((self.true_cfg_scale if embedded else self.guidance_scale) or 1.0) > 1.0

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the clip, one after the other."""
        return self.prompt, *(split_time(text)[1] for text in self.then)

    @property
    def clip_height(self) -> int:
        """Height of a resolved request."""
        assert self.height is not None, "resolve the request first"
        return self.height

    @property
    def clip_width(self) -> int:
        """Width of a resolved request."""
        assert self.width is not None, "resolve the request first"
        return self.width

    @property
    def clip_frames(self) -> int:
        """Number of frames of a resolved request."""
        assert self.num_frames is not None, "resolve the request first"
        return self.num_frames

    def grid(self, spec: ModelSpec) -> TokenGrid:
        """The latent tokens of a resolved request's clip, of those of its frames that are denoised at once."""
        _, height, width = spec.stride
        frames = spec.latent_frames(spec.frames_at_once(self.clip_frames))
        return TokenGrid(frames, self.clip_height // height, self.clip_width // width)

    @property
    def is_resolved(self) -> bool:
        """Whether no field is open: only what a model may not have is still None."""
        optional = {"guidance_scale_2", "true_cfg_scale", "flow_shift", "image", "last_image", "extend", "positions",
                    "control_video", "mask", "strength", "face_video", "background_video", "enhance",
                    "original_prompt", "policy", "target_share", "target_speed"}  # fmt: skip
        return self.seed >= 0 and all(value is not None for name, value in self if name not in optional)

    @property
    def _came_resolved(self) -> bool:
        """Whether it was resolved before, be it by an earlier version: what it left open then it meant to."""
        return all(
            getattr(self, name) is not None for name in ("negative_prompt", "height", "attention", "dense_steps")
        )

    @property
    def attention_settings(self) -> AttentionSettings:
        """How the attention of a resolved request is computed."""
        assert self.is_resolved, "resolve the request first"
        names = AttentionSettings.model_fields.keys() - {"kind"}
        return AttentionSettings(kind=self.attention or "radial", **{name: getattr(self, name) for name in names})


def make_request(**fields: Any) -> GenerationRequest:
    """A request from loose values.

    Raises:
        RequestError: one line that names each field, the value and the rule.
    """
    try:
        return GenerationRequest(**fields)
    except ValidationError as error:
        raise RequestError(explain_all(error.errors(), 10)) from error
