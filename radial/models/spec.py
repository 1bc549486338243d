"""What is known of a model: which pipelines drive it, what it can make, and what a request leaves open."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from radial.errors import RequestError
from radial.models.step_caches import CacheWord, StepCache, StepCaches, choose_step_cache
from radial.plans.layout import BlockSize
from radial.plans.pattern import RadialPattern
from radial.plans.policy import Schedule

Sampler = Literal["model", "euler", "lcm", "unipc"]
# Pipelines whose two passes of a guided step are two calls that differ in their text alone, of one length.
BATCHED_GUIDANCE = {
    "HunyuanVideoPipeline", "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Pipeline", "WanImageToVideoPipeline",
    "WanPipeline",
}  # fmt: skip
# Pipelines whose transformers' tokens can be put in columns.
COLUMNS = BATCHED_GUIDANCE | {
    "HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo15Pipeline", "HunyuanVideoImageToVideoPipeline",
    "LTXImageToVideoPipeline", "LTXPipeline", "WanVACEPipeline", "WanVideoToVideoPipeline",
}  # fmt: skip
Task = Literal["text", "image", "control", "video"]
"""What a clip is made from: words, an image, what steers it beside its words, or another clip that is made over."""
# What steers a clip, by the pipelines that take it. One that makes a clip over takes what is said of it, too.
STEERED_BY: dict[str | None, tuple[str, ...]] = {
    "CogVideoXFunControlPipeline": ("control_video",),
    "LTX2ConditionPipeline": ("keyframes",),
    "LTXConditionPipeline": ("keyframes",),
    "WanAnimatePipeline": ("control_video", "face_video", "background_video", "mask", "references"),
    "WanVACEPipeline": ("control_video", "mask", "references", "keyframes"),
}
# Which of these a pipeline cannot do without.
NEEDED_BY: dict[str | None, tuple[str, ...]] = {"WanAnimatePipeline": ("control_video", "face_video", "references")}
_SMALL = 832 * 480  # pixels of what the authors of Wan call 480p


@dataclass(frozen=True)
class Piece:
    """A component of a model that lies alone on the hub.

    Attributes:
        component: its name in the pipeline.
        kind: library and class.
        source: hub id.
        folder: there; nothing where it lies at the top.
    """

    component: str
    kind: tuple[str, str]
    source: str
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a request leaves open, and what the model can make.

    Attributes:
        source: hub id, or folder.
        pieces: components that lie elsewhere on the hub than in the ``base``, which has all others.
        transformer_files: the files that the transformers' weights come from, in place of the source's.
        note: what its user should hear of how it was found.
        has_two_transformers: one for high noise, and one for low.
        guidance_is_within: whether guidance is in the weights: it takes no scale and no words to avoid.
        exact_fps: whether its clips have the speed that it was trained at alone, as those with sound have.
        guidance_is_embedded: whether guidance_scale is a number that the transformer is told; words to avoid then count
            at a true_cfg_scale above 1.
        text_pipeline, image_pipeline: the diffusers classes that start from a prompt alone, and from a prompt with
            images; None where the model has no such task.
        control_pipeline: the class that is steered beside its words, by what :data:`STEERED_BY` says.
        video_pipeline: the class that makes another clip over, by a strength.
        most_references: images of what appears that it takes; ours, where its authors name no number.
        takes_last_image: whether the image pipeline can also be given the last frame.
        needs_last_image: whether it must be.
        stride: pixels to one latent token along (frames, height, width), patches included.
        first_frame: 1 where the autoencoder keeps the first frame apart, so that lengths are a multiple plus 1; more
            where it keeps more apart.
        chunk_latents, first_latents: latent frames of so many frames as the stride says, and of those kept apart where
            they are not as many.
        shortest_frames: of the shortest clip the model was trained on, where that is said.
        native_frames: the longest clip the model was trained on.
        max_sequence_length: text tokens a prompt is padded or cut to.
        flow_shift: of the noise schedule; the checkpoint's own where it is None.
        small_flow_shift: the same at 480p and below, where the authors have another there.
        image_flow_shift, image_guidance_scale: from an image, where the authors have others than from text.
        few_step_sampler: how models distilled from it to few steps are sampled.
        prompt_template: the authors' words around a prompt, which they write in small letters, at ``{}``.
        pipeline_arguments: what the authors tell the pipeline beside what a request says.
        scheduler: the class that the authors run it with, where the checkpoint may name another.
        half_dtype: the 16-bit numbers it was made for.
        is_flow: whether it goes from noise to a clip in straight lines, as samplers other than its own and shifts want.
        reads_names: whether it was trained on enough words that a figure's name means one to it.
        exact_autoencoder: whether the autoencoder must compute in float32.
        decodes_in_tiles: whether it decodes in tiles alone.
        packages: that it needs and an installation may lack.
        gated: whether the hub wants its terms accepted.
        bucket_side: of the square whose area all sizes have that the image pipeline makes, where it makes but some.
        window_frames: most frames that it denoises at once; longer clips come window by window.
        new_frames: that each further window adds.
        authors: where its settings are said.
        pattern, schedule: radial attention up to the native length, for ``num_inference_steps`` steps.
        long_pattern, long_schedule: the same beyond it.
        layers: transformer layers, for estimates before loading.
        riflex_period: latent frames after which the model repeats itself beyond its native length.
        step_caches: its own; else its pipeline's, where that has some.
        tiny_decoder: the file on the hub that ``decoder tiny`` means, where one is known.
        long_adapter: the adapter that clips beyond the native length take, where one comes with the package.
    """

    name: str
    summary: str
    source: str
    text_pipeline: str | None = "WanPipeline"
    image_pipeline: str | None = None
    control_pipeline: str | None = None
    video_pipeline: str | None = None
    most_references: int = 0
    takes_last_image: bool = False
    needs_last_image: bool = False
    stride: tuple[int, int, int] = (4, 16, 16)
    first_frame: int = 1
    chunk_latents: int = 1
    first_latents: int | None = None
    shortest_frames: int = 1
    height: int = 480
    width: int = 832
    num_frames: int = 81
    fps: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    guidance_scale_2: float | None = None
    native_frames: int = 81
    max_sequence_length: int = 512
    pattern: RadialPattern = field(default_factory=lambda: RadialPattern(decay=0.2))
    schedule: Schedule = field(default_factory=lambda: Schedule(dense_layers=1, dense_steps=12))
    long_pattern: RadialPattern = field(default_factory=lambda: RadialPattern(decay=1.0))
    long_schedule: Schedule = field(default_factory=lambda: Schedule(dense_layers=2, dense_steps=2))
    block_size: BlockSize = 128
    layers: int = 30
    negative_prompt: str = ""
    flow_shift: float | None = None
    small_flow_shift: float | None = None
    image_flow_shift: float | None = None
    image_guidance_scale: float | None = None
    few_step_sampler: Literal["euler", "lcm"] = "euler"
    prompt_template: str = ""
    pipeline_arguments: tuple[tuple[str, object], ...] = ()
    scheduler: str | None = None
    half_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    is_flow: bool = True
    reads_names: bool = True
    exact_autoencoder: bool = False
    decodes_in_tiles: bool = False
    packages: tuple[str, ...] = ()
    gated: bool = False
    bucket_side: int | None = None
    window_frames: int | None = None
    new_frames: int = 0
    authors: str = ""
    riflex_period: float | None = None
    step_caches: StepCaches | None = None
    long_adapter: str | None = None
    base: str = ""
    pieces: tuple[Piece, ...] = ()
    tiny_decoder: str = ""
    transformer_files: tuple[str, ...] = ()
    note: str = ""
    has_two_transformers: bool = False
    guidance_is_embedded: bool = False
    guidance_is_within: bool = False
    exact_fps: bool = False

    @property
    def native_latents(self) -> int:
        """Latent frames of a clip of the native length."""
        return self.latent_frames(self.native_frames)

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip of a legal length."""
        first = self.first_frame if self.first_latents is None else self.first_latents
        return (num_frames - self.first_frame) // self.stride[0] * self.chunk_latents + first

    def frames_at_once(self, num_frames: int) -> int:
        """Of a clip of so many frames, those that are denoised at once."""
        return num_frames if self.window_frames is None else min(num_frames, self.window_frames)

    def windows(self, num_frames: int) -> int:
        """How many times a clip of so many frames goes through all steps, a window after the other."""
        return 1 + -(-(num_frames - self.frames_at_once(num_frames)) // max(1, self.new_frames))

    @property
    def own_weights(self) -> dict[str, Path]:
        """Files of the components whose weights are not the source's."""
        names = ("transformer", "transformer_2")
        return {name: Path(file) for name, file in zip(names, self.transformer_files, strict=False)}

    @property
    def own_components(self) -> tuple[str, ...]:
        """Components whose weights are not the source's."""
        return tuple(self.own_weights)

    @property
    def starts_from(self) -> list[str]:
        """What the app can make a clip from: text, image, control."""
        alone = self.control_pipeline if not (self.text_pipeline or self.image_pipeline) else None
        words = (("text", self.text_pipeline), ("image", self.image_pipeline), ("control", alone))
        return [word for word, found in words if found]

    @property
    def needs(self) -> tuple[str, ...]:
        """The files without which it makes no clip, by the fields of a request that name them."""
        if self.text_pipeline is not None:
            return ()
        if self.image_pipeline is not None:
            return ("image", "last_image") if self.needs_last_image else ("image",)
        return NEEDED_BY.get(self.control_pipeline, ("control_video",))

    @property
    def takes_columns(self) -> bool:
        """Whether tokens can be put in columns."""
        return self.pipelines <= COLUMNS

    @property
    def steered_by(self) -> tuple[str, ...]:
        """The fields of a request that steer its clips beside their words."""
        return (*STEERED_BY.get(self.control_pipeline, ()), *(("strength",) if self.video_pipeline else ()))

    def pipeline_for(self, task: Task) -> str | None:
        """The diffusers class of a task; None where the model has none."""
        return {
            "text": self.text_pipeline, "image": self.image_pipeline, "control": self.control_pipeline,
            "video": self.video_pipeline,
        }[task]  # fmt: skip

    @property
    def pipelines(self) -> set[str]:
        """The diffusers classes that drive the model."""
        found = (self.text_pipeline, self.image_pipeline, self.control_pipeline, self.video_pipeline)
        return {one for one in found if one is not None}

    def step_cache(self, word: CacheWord, task: Task, steps: int) -> StepCache | None:
        """What a request's word for a cache means; None for none.

        Raises:
            RequestError: it cannot be: the steps are too few, or ``fast`` is not known for this model.
        """
        return choose_step_cache(word, self.step_caches, self.pipeline_for(task), self.name, steps)

    def shift_for(self, height: int, width: int, from_image: bool) -> float | None:
        """The authors' shift of the noise schedule for a size and what the clip starts from."""
        if from_image and self.image_flow_shift is not None:
            return self.image_flow_shift
        small = self.small_flow_shift is not None and height * width <= _SMALL
        return self.small_flow_shift if small else self.flow_shift

    def guidance_for(self, from_image: bool) -> float:
        """The authors' guidance for what the clip starts from."""
        given = self.image_guidance_scale if from_image else None
        return self.guidance_scale if given is None else given

    def words_for(self, prompt: str) -> str:
        """What the text encoder reads for a prompt."""
        return self.prompt_template.format(prompt.lower().strip()) if self.prompt_template else prompt

    def preset(self, num_frames: int, num_inference_steps: int) -> tuple[RadialPattern, Schedule]:
        """Pattern and schedule for a length; dense steps keep their share when there are fewer steps."""
        longer = self.frames_at_once(num_frames) > self.native_frames
        pattern, schedule = (self.long_pattern, self.long_schedule) if longer else (self.pattern, self.schedule)
        first, last = (
            self.dense_share(steps, num_inference_steps) for steps in (schedule.dense_steps, schedule.dense_last_steps)
        )
        return pattern, replace(schedule, dense_steps=first, dense_last_steps=last)

    def dense_share(self, dense_steps: int, num_inference_steps: int) -> int:
        """Of that many steps, as many dense ones as ``dense_steps`` are of the model's own number; at least one."""
        if not dense_steps or num_inference_steps <= 1:
            return 0
        return max(1, round(dense_steps * (num_inference_steps / self.num_inference_steps)))

    def check_size(self, height: int, width: int, num_frames: int) -> None:
        """Raise RequestError, naming the nearest legal values, for a clip the model's autoencoder cannot make."""
        for name, value, stride in (("height", height, self.stride[1]), ("width", width, self.stride[2])):
            if value % stride:
                legal = _nearest(value / stride)
                raise RequestError(
                    f"{name} must be a multiple of {stride} for {self.name}, not {value}; "
                    f"the nearest are {' and '.join(str(n * stride) for n in legal)} (--snap takes the nearest)"
                )
        stride, first = self.stride[0], self.first_frame
        if (num_frames - first) % stride or num_frames < max(1, first):
            legal = _nearest((num_frames - first) / stride, lowest=0 if first else 1)
            rule = f"{stride} plus {first}" if first else f"{stride}"
            raise RequestError(
                f"num_frames must be a multiple of {rule} for {self.name}, not {num_frames}; "
                f"the nearest are {' and '.join(str(n * stride + first) for n in legal)} (--snap takes the nearest)"
            )

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Raise RequestError where the model leaves no choice, and a request's fields make another."""
        if self.exact_fps and given["fps"] not in (None, self.fps):
            raise RequestError(
                f"fps must be {self.fps} for {self.name}, not {given['fps']}: its sound is made for that speed"
            )
        if given["batched_guidance"]:
            self._check_batched(given)
        if given["decoder"] == "tiny" and not self.tiny_decoder:
            raise RequestError(f"no tiny decoder is known by name for {self.name}: give its file, or decoder full")
        if not self.guidance_is_within:
            return
        for name in ("guidance_scale", "guidance_scale_2", "true_cfg_scale"):
            if (value := given[name]) not in (None, 1.0):
                raise RequestError(
                    f"{name} {value:g} cannot be: {self.name} was distilled with its guidance, and makes no second "
                    "pass; leave it out"
                )
        if given["negative_prompt"]:
            raise RequestError(
                f"{self.name} takes no negative_prompt: it was distilled with its guidance, and makes no second pass "
                "for words to avoid; leave it out"
            )

    def _check_batched(self, given: Mapping[str, Any]) -> None:
        """Raise RequestError where both passes of a step cannot be made in one call, or need not."""
        pipelines = {self.text_pipeline, self.image_pipeline} - {None}
        if not pipelines <= BATCHED_GUIDANCE:
            raise RequestError(
                f"batched_guidance is not for {self.name}: its pipeline makes both passes in one call already, or none "
                "that go into one; leave it out"
            )
        if given["cache"] != "off":
            raise RequestError(
                f"batched_guidance and cache {given['cache']} exclude each other: a cache tells the passes apart"
            )
        if (given["guidance_start"], given["guidance_end"]) != (0.0, 1.0):
            raise RequestError("batched_guidance is for steps that are all guided: leave out guidance_start and _end")

    def bucket(self, height: int, width: int) -> tuple[int, int]:
        """The size that the image pipeline makes of an image of this shape, as diffusers' HunyuanVideo 1.5 chooses it:
        of sizes of the square's area, the one of the nearest shape that is no longer than the image."""
        if self.bucket_side is None:
            return height, width
        wanted = height / width
        shapes = [(round(h / w, 5), (h, w)) for h, w in _sizes_of_area(self.bucket_side, self.stride[1])]
        within = [one for one in shapes if (one[0] <= wanted if wanted >= 1 else one[0] >= wanted)]
        return min(within, key=lambda one: abs(one[0] - wanted))[1]

    def fitted(self, height: int, width: int, *, snap: bool) -> tuple[int, int]:
        """The size of a clip that starts from an image.

        Raises:
            RequestError: the image pipeline makes others alone, and the nearest is not to be taken.
        """
        bucket = self.bucket(height, width)
        if bucket != (height, width) and not snap:
            raise RequestError(
                f"{self.name} makes clips from images in certain sizes alone; the nearest to {width}x{height} is "
                f"{bucket[1]}x{bucket[0]} (--snap takes it)"
            )
        return bucket

    def snap_size(self, height: int, width: int, num_frames: int) -> tuple[int, int, int]:
        """The nearest size that the autoencoder can make."""
        _, down, across = self.stride
        frames = max(0 if self.first_frame else 1, round((num_frames - self.first_frame) / self.stride[0]))
        return (
            max(1, round(height / down)) * down,
            max(1, round(width / across)) * across,
            frames * self.stride[0] + self.first_frame,
        )


@functools.cache
def _sizes_of_area(side: int, patch: int) -> tuple[tuple[int, int], ...]:
    """Sizes of whole patches with about the area of a square, from high to wide, none four times as long as the other
    side."""
    most = round((side / patch) ** 2)
    sizes, high, wide = [], most, 1
    while high:
        if max(high, wide) <= 4 * min(high, wide):
            sizes.append((high * patch, wide * patch))
        if (wide + 1) * high <= most:
            wide += 1
        else:
            high -= 1
    return tuple(sizes)


def _nearest(quotient: float, lowest: int = 1) -> list[int]:
    below = max(int(quotient), lowest)
    return [below, below + 1]
