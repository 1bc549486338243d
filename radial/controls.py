"""What steers a clip beside its words, with one meaning for all models: what of it goes together, and who can."""

from __future__ import annotations

from typing import Any, Protocol

from radial.errors import RequestError
from radial.field_words import WORDS
from radial.input_files import Keyframe
from radial.models.find import pipeline_of
from radial.models.spec import NEEDED_BY, ModelSpec, Task
from radial.models.table import MODELS

STEERING = ("control_video", "face_video", "background_video", "mask", "references", "keyframes", "strength")
# Pipelines that are given noise levels of their own, which not every sampler takes.
_OWN_LEVELS = {"LTXConditionPipeline"}


class Steered(Protocol):
    """The fields of a request that decide what steers its clip, and what these go with."""

    image: str | None
    last_image: str | None
    control_video: str | None
    face_video: str | None
    background_video: str | None
    mask: str | None
    references: tuple[str, ...]
    strength: float | None
    keyframes: tuple[Keyframe, ...]
    enhance: str | None
    original_prompt: str | None
    num_inference_steps: int | None
    guidance_start: float
    guidance_end: float
    batched_guidance: bool
    cache: Any
    sampler: Any
    decoder: str
    token_order: Any
    then: tuple[str, ...]
    policy: str | None
    target_share: float | None
    target_speed: float | None

    @property
    def starts_from_image(self) -> bool: ...

    @property
    def task(self) -> Task: ...

    @property
    def clip_frames(self) -> int: ...

    @property
    def computed_steps(self) -> int: ...

    @property
    def guided_steps(self) -> range: ...


def task_of(request: Steered) -> Task:
    """What a request's clip is made from."""
    if request.strength is not None:
        return "video"
    if _given(request):
        return "control"
    return "image" if request.starts_from_image else "text"


def check_together(request: Steered) -> None:
    """Raise ValueError for fields that exclude or need each other, whatever the model."""
    if request.original_prompt is not None and request.enhance is None:
        raise ValueError("original_prompt needs enhance: the model that made the prompt of it")
    if request.enhance is not None and request.then:
        raise ValueError("enhance is for one prompt: leave then out")
    if request.mask is not None and request.control_video is None and request.background_video is None:
        raise ValueError("mask needs control_video: its white part is where that clip is made anew")
    if request.background_video is not None and request.mask is None:
        raise ValueError("background_video needs mask, which is white where that clip's figure is replaced")
    if request.strength is not None and request.control_video is None:
        raise ValueError("strength needs control_video: the clip that is made over")
    for name in ("face_video", "background_video", "mask", "references"):
        if request.strength is not None and getattr(request, name):
            raise ValueError(f"strength and {name} exclude each other: with strength all of a clip is made over")
    for name in ("target_share", "target_speed"):
        if getattr(request, name) is not None and request.policy is None:
            raise ValueError(f"{name} needs policy: the file that says what each layer contributes at each step")
    if request.target_share is not None and request.target_speed is not None:
        raise ValueError("target_share and target_speed exclude each other: give one of them")


def _given(request: Steered) -> list[str]:
    return [name for name in STEERING if getattr(request, name) not in (None, ())]


def check_controls(request: Steered, spec: ModelSpec) -> None:
    """Make sure, before anything is loaded, that a model takes what a clip starts from, ends on and is steered by.

    Raises:
        RequestError: it does not; models that do are named.
    """
    task = request.task
    if task in ("text", "image"):
        pipeline_of(spec, task)
    if request.last_image is not None and not spec.takes_last_image:
        able = ", ".join(other.name for other in MODELS.values() if other.takes_last_image)
        raise RequestError(f"{spec.name} takes no last_image; models that do: {able}")
    if request.last_image is None and spec.needs_last_image:
        raise RequestError(f"{spec.name} goes from one image to another: give --last-image, too")
    given = _given(request)
    if request.strength is not None:
        given.remove("control_video")  # the clip that is made over steers nothing
    for name in given:
        if name not in spec.steered_by:
            able = ", ".join(one.name for one in MODELS.values() if name in one.steered_by)
            over = name == "control_video" and "strength" in spec.steered_by
            hint = "; with strength 0.6, say, it makes the clip itself over" if over else ""
            raise RequestError(f"{spec.name} takes no {name}; models that do: {able}{hint}")
    pipeline = pipeline_of(spec, task)
    if task in ("text", "image"):
        return
    for name in NEEDED_BY.get(pipeline, ()):
        if name not in given:
            raise RequestError(f"{spec.name} needs {name}: {WORDS[name]}")
    if "background_video" in spec.steered_by and request.mask is not None and request.background_video is None:
        raise RequestError(f"mask goes with background_video for {spec.name}: of poses no part is kept")
    if len(request.references) > spec.most_references:
        raise RequestError(
            f"references must be at most {spec.most_references} for {spec.name}, not {len(request.references)}"
        )
    if request.starts_from_image and "keyframes" not in spec.steered_by:
        instead = "it is a reference there" if "references" in spec.steered_by else "leave the image out"
        raise RequestError(f"{spec.name} does not start from an image where it takes {given[0]}: {instead}")
    if request.keyframes and task == "video" and spec.video_pipeline != spec.control_pipeline:
        raise RequestError(f"keyframes and strength exclude each other for {spec.name}")
    if request.then:
        raise RequestError(f"then does not go with {given[0]}: give one prompt")
    if request.batched_guidance:
        raise RequestError(f"batched_guidance does not go with {given[0]}: leave it out")
    if pipeline in _OWN_LEVELS and request.sampler in ("lcm", "unipc"):
        raise RequestError(f"sampler {request.sampler} does not go with {given[0]} on {spec.name}: take model or euler")


def check_in_time(request: Steered, spec: ModelSpec) -> None:
    """The same of what goes by a resolved request's frames and steps.

    Raises:
        RequestError: no step is guided, a keyframe lies beyond the clip or on another image, the strength leaves no
            step, or a clip would go on from drafts.
    """
    by_frames = spec.pipeline_for(request.task) == "WanAnimatePipeline"
    if by_frames and request.decoder != "full" and spec.windows(request.clip_frames) > 1:
        raise RequestError(
            f"decoder {request.decoder[:200]} is for clips of up to {spec.window_frames} frames on {spec.name}: longer "
            "ones go on from their own frames; take full"
        )
    last = request.clip_frames - 1
    taken: dict[int, str] = {}
    if request.keyframes:
        taken = {0: "the start image"} if request.starts_from_image else {}
        taken |= {last: "the end image"} if request.last_image is not None else {}
    for keyframe in request.keyframes:
        place = keyframe.frame if keyframe.frame >= 0 else request.clip_frames + keyframe.frame
        if not 0 <= place <= last:
            raise RequestError(f"a keyframe at {keyframe.frame} lies beyond the clip, whose frames are 0 to {last}")
        if place in taken:
            raise RequestError(f"two images cannot be at frame {place}: a keyframe, and {taken[place]}")
        taken[place] = "another"
    if not request.guided_steps:
        raise RequestError(
            f"guidance_start {request.guidance_start:g} and guidance_end {request.guidance_end:g} leave none of the "
            f"{request.num_inference_steps} steps guided; guidance_scale 1 is for that"
        )
    if request.keyframes and request.token_order not in (None, "raster"):
        raise RequestError(f"keyframes do not go with token_order {request.token_order}: take raster")
    if request.strength is None:
        return
    steps = request.num_inference_steps or 1
    if request.computed_steps < 1:
        raise RequestError(
            f"strength {request.strength:g} leaves none of {steps} steps: {-(-1000 // steps) / 1000:g} or more does"
        )
    if (request.guidance_start, request.guidance_end) != (0.0, 1.0):
        raise RequestError("strength leaves the first steps out: leave guidance_start and guidance_end out")
    if request.cache != "off":
        raise RequestError(f"cache {request.cache} does not go with strength, which leaves the first steps out")
