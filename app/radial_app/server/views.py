"""What the REST interface takes and tells, in the shape of OpenAI's video API where that has a word for it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radial.errors import ModelError, RadialError
from radial.field_words import WORDS
from radial.loading.needs import Needs, needs_of
from radial.models.architecture import named_weights
from radial.models.checkpoint import checkpoint_folder
from radial.models.find import positions_of
from radial.models.hub.download import cached_folder
from radial.models.spec import BATCHED_GUIDANCE, ModelSpec
from radial.models.step_caches import LEAST_STEPS
from radial.models.table import MODELS
from radial.request import GenerationRequest, make_request
from radial.stories.request import ways_of
from radial.timed_prompts import knows_timed_prompts
from radial.video.encoding import Encoding
from radial_app.jobs.job import DEFAULT_NAME, Job, Output, State, make_output
from radial_app.server.answers import InvalidFields
from radial_app.server.finishing.bounds import FinishBody, FinishField
from radial_app.server.uploads import Inputs

Status = Literal["queued", "in_progress", "completed", "failed"]
_STATUS: dict[State, Status] = {
    "queued": "queued", "paused": "queued", "running": "in_progress", "done": "completed", "failed": "failed",
    "cancelled": "failed",
}  # fmt: skip


# What each field of a request means, for people; what is said otherwise, or of these fields alone, over the web.
_SAYS = WORDS | {
    "model": "a model's name, one of your own, or a hub id",
    "image": "the image it starts from: an upload's id, or video:ID/0",
    "loras": "adapters: path is a name from /v1/adapters, weight how strongly it acts",
    "preset": "settings that go together, such as 4-step", "file": "what it is kept as",
    "finish": "what is done to it when it is there, into a file of its own: frames and scale, say",
    "name": "a template, such as {slug}-{seed}",
}  # fmt: skip


def _add_words(schema: dict[str, Any]) -> None:
    """Put what fields mean into a description for machines."""
    for name, field in schema.get("properties", {}).items():
        if name in _SAYS:
            field["description"] = _SAYS[name]


class FileRequest(Encoding):
    """What kind of file a video becomes, and the template of its name, without a suffix."""

    model_config = ConfigDict(json_schema_extra=_add_words)

    name: str = Field(DEFAULT_NAME, max_length=500)


class VideoRequest(GenerationRequest):
    """A request as it comes over the web. Beside the fields of a request it may say ``size`` (WIDTHxHEIGHT),
    ``seconds``, as OpenAI's clients do, ``preset``, and which ``file`` it becomes. Images and clips are ids of uploads
    or ``video:ID`` of a finished video; adapters and checkpoints are names."""

    model_config = ConfigDict(json_schema_extra=_add_words)

    size: str | None = Field(None, max_length=20)
    seconds: float | None = Field(None, gt=0, le=600)
    preset: str | None = Field(None, max_length=40)
    file: FileRequest | None = None
    finish: FinishField = None


def read_request(fields: dict[str, Any]) -> tuple[dict[str, Any], Output, FinishBody | None]:
    """The fields of a request as it came over the web, checked, what its videos are kept as, and what is done to them
    when they are there.

    Raises:
        RequestError: a field breaks a rule.
    """
    try:
        request = VideoRequest.model_validate(fields)
    except ValidationError as error:
        raise InvalidFields(error.errors()) from error
    told = request.model_dump(mode="json", exclude_unset=True, exclude={"file", "finish"})
    return told, output_of(request.file), request.finish


def output_of(file: FileRequest | None) -> Output:
    """What videos are kept as.

    Raises:
        RequestError: the name is no template.
    """
    kept = (file or FileRequest()).model_dump()  # type: ignore[call-arg]
    return make_output(name=kept.pop("name"), encoding=kept)


def describe_fields() -> dict[str, dict[str, Any]]:
    """What each field of a request means and may be: least and most, or the choices, and what it is when left out."""
    told = {}
    for name, schema in VideoRequest.model_json_schema()["properties"].items():
        kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
        kind = kinds[0] if kinds else {}
        found = {
            "type": kind.get("type"), "minimum": kind.get("minimum", kind.get("exclusiveMinimum")),
            "maximum": kind.get("maximum", kind.get("exclusiveMaximum")), "choices": kind.get("enum"),
            "default": schema.get("default"), "description": schema.get("description"),
        }  # fmt: skip
        told[name] = {key: value for key, value in found.items() if value is not None}
    return told


class ListRequest(BaseModel):
    """A list of videos: prompts a line, a table, JSON lines or YAML, as ``radial render`` takes them; what its rows
    leave open is as ``defaults`` say. With ``dry_run`` nothing is queued."""

    model_config = ConfigDict(extra="forbid")

    text: str
    kind: Literal["txt", "csv", "jsonl", "yaml"] = "txt"
    defaults: dict[str, Any] = Field(default_factory=dict)
    file: FileRequest | None = None
    dry_run: bool = False


class ListedVideo(BaseModel):
    """A video of a list."""

    source: str
    prompt: str
    model: str
    size: str
    seconds: float
    num_inference_steps: int | None
    seed: int
    render_seconds: float | None


class ListedVideos(BaseModel):
    """The videos of a list, the ids that they have in the queue, and what in it looks like a slip."""

    data: list[ListedVideo]
    ids: list[str]
    warnings: list[str]


class Problem(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class VideoFile(BaseModel):
    """One of a job's videos: fetch it as ``content?index=``; ``finished`` where it was made of another one."""

    index: int
    finished: bool
    seed: int
    render_seconds: float
    partial: bool
    name: str


class StoryOfVideo(BaseModel):
    """How far the film of a story is: the segment it is at, from 1, of how many; its pieces that are finished, of how
    many; and what of it plays."""

    segment: int
    segments: int
    pieces_done: int
    pieces: int
    playable_seconds: float


class Video(BaseModel):
    """A job, and the videos it makes; ``story`` where it makes the film of one, and ``finish`` what is done to what it
    renders, or to clips that were there, where it ``renders`` none."""

    id: str
    object: Literal["video"] = "video"
    status: Status
    state: State
    progress: int
    created_at: int
    started_at: int | None
    completed_at: int | None
    model: str
    prompt: str
    seconds: str
    size: str
    num_frames: int
    fps: int
    stage: str
    step: int
    steps: int
    eta: float | None
    recall: float | None
    attention_error: float | None
    control: str
    error: Problem | None
    note: str
    attempts: int
    preview: float | None
    files: list[VideoFile]
    favourite: bool
    batch: str
    owner: str
    request: dict[str, Any]
    notes: list[str]
    story: StoryOfVideo | None = None
    finish: dict[str, Any] | None = None
    renders: int = 1


class VideoList(BaseModel):
    """A page of videos, the latest first."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A video that is no more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Change(BaseModel):
    """What may change of a job: its place among those that wait, whether it is a favourite, its request's fields."""

    model_config = ConfigDict(extra="forbid")

    place: int | None = Field(None, ge=1, le=1_000_000)
    step: Literal["up", "down"] | None = None
    favourite: bool | None = None
    request: dict[str, Any] | None = None


class Model(BaseModel):
    """A model and what it makes when a request leaves it open. ``stories`` says how it makes those: in ``chunks``, with
    an adapter that was tuned for it, in ``windows``, and whether these start from an ``image``. ``download`` is about
    what comes where it is not here yet, and ``memory`` what a GPU needs for a clip of its own size, whole and at the
    least, in bytes of 16-bit numbers; None where nobody knows."""

    id: str
    object: Literal["model"] = "model"
    summary: str
    width: int
    height: int
    num_frames: int
    native_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    starts_from: list[str]
    stories: list[str]
    takes_last_image: bool
    needs_last_image: bool
    steered_by: list[str]
    most_references: int
    has_two_transformers: bool
    guidance_is_embedded: bool
    guidance_is_within: bool
    is_flow: bool
    knows_riflex: bool
    knows_positions: bool
    knows_cache: bool
    knows_timed_prompts: bool
    knows_tiny_decoder: bool
    knows_batched_guidance: bool
    stride: tuple[int, int, int]
    first_frame: int
    on_disk: int
    download: int | None
    memory: int | None
    least_memory: int | None
    removable: bool
    own: bool = False
    problem: str = ""


def video_of(job: Job, inputs: Inputs, preview: float | None = None) -> Video:
    """A job as the web sees it; ``preview`` is when the last look at it was taken."""
    request, done = job.request, [file for file in job.files if file.done]
    status = "completed" if job.state == "cancelled" and done else _STATUS[job.state]
    status = "failed" if job.problem else status
    notes: list[str] = []
    fields, frames, fps, size = inputs.fields(request, notes), job.frames, request.fps or 1.0, _size_of(job)
    if job.finish is not None and job.beside:
        fps = job.finish.fps
    return Video(
        id=job.id, status=status, state=job.state,
        progress=_progress(job), created_at=int(job.created),
        started_at=None if job.started is None else int(job.started),
        completed_at=None if job.finished is None else int(job.finished), model=Path(request.model).name
        if Path(request.model).is_absolute() else request.model,
        prompt=request.prompt, seconds=f"{frames / fps:.4g}", story=_story_of(job),
        size=size, num_frames=frames, fps=max(1, round(fps)), renders=job.renders,
        finish=None if job.finish is None else job.finish.what.told(),
        stage=job.stage, step=job.step, steps=job.steps, eta=job.eta, recall=job.recall,
        attention_error=job.attention_error, control=job.control,
        error=Problem(code=job.state, message=job.error or job.state) if status == "failed" else None, note=job.error,
        attempts=job.attempts, preview=preview, files=[
            VideoFile(index=i, finished=i >= job.renders, seed=file.seed, render_seconds=file.seconds,
                      partial=file.partial, name=Path(file.path).name)
            for i, file in enumerate(job.files) if file.done
        ],
        favourite=job.favourite, batch=job.batch, owner=job.owner, request=fields, notes=notes,
    )  # fmt: skip


def _progress(job: Job) -> int:
    """Per cent of the steps and frames of all of a job's videos, or of the film of its story."""
    if job.state == "done":
        return 100
    share = job.step / job.steps if job.steps and job.stage in ("denoise", "finish") else 0.0
    share = max(share, float(job.stage in ("decode", "write")))
    if job.story is not None and job.stage != "finish":
        return min(99, int(100 * (job.pieces + share) / job.story.count()))
    return min(99, int(100 * (job.video + share) / job.results)) if job.state == "running" else 0


def _size_of(job: Job) -> str:
    if job.finish is not None and job.beside:
        return f"{job.finish.width}x{job.finish.height}"
    return f"{job.request.clip_width}x{job.request.clip_height}"


def _story_of(job: Job) -> StoryOfVideo | None:
    if job.story is None:
        return None
    ends = job.story.ends(job.pieces)
    return StoryOfVideo(
        segment=job.story.segment_at(job.pieces) + 1, segments=len(job.story.lines), pieces_done=job.pieces,
        pieces=job.story.count(), playable_seconds=round(ends[-1] / job.story.fps, 3) if ends else 0.0,
    )  # fmt: skip


def model_of(name: str, spec: ModelSpec, *, own: bool = False) -> Model:
    """A model as the web sees it: ``on_disk`` are the bytes of its files here; it is ``removable`` where it came from
    the hub, and one's ``own`` goes into the trash."""
    folder = _folder_of(spec)
    needs = _needs_of(name) if MODELS.get(name) == spec else None
    return Model(
        download=None if needs is None else needs.model, memory=None if needs is None else needs.vram("full"),
        least_memory=None if needs is None else needs.vram("lowest"),
        **{told: getattr(spec, told) for told in Model.model_fields if hasattr(spec, told)},
        id=name, stories=ways_of(spec), knows_tiny_decoder=bool(spec.tiny_decoder),
        knows_riflex=spec.riflex_period is not None, knows_positions=bool(positions_of(spec)),
        knows_cache=knows_cache(spec), knows_timed_prompts=knows_timed_prompts(spec),
        knows_batched_guidance={spec.text_pipeline, spec.image_pipeline} - {None} <= BATCHED_GUIDANCE,
        on_disk=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder else 0,
        removable=folder is not None and folder.parent.name == "snapshots", own=own,
    )  # fmt: skip


def knows_cache(spec: ModelSpec) -> bool:
    """Whether there is a step cache for a model."""
    return any(spec.step_cache("auto", task, LEAST_STEPS) is not None for task in ("text", "image"))


def broken_model(name: str, problem: str) -> Model:
    """A model of one's own that cannot be used, and why."""
    nothing = ModelSpec(name=name, summary="cannot be used", source="", text_pipeline=None)
    return model_of(name, nothing, own=True).model_copy(update={"problem": problem})


@functools.cache
def _needs_of(name: str) -> Needs | None:
    """What a named model needs for a clip of its own size."""
    spec = MODELS[name]
    weights = named_weights(spec)
    if weights is None:
        return None
    files = dict.fromkeys(spec.needs, "x")
    try:
        return needs_of(make_request(prompt="x", model=name, seed=0, **files).resolve(), spec, weights, 2)
    except RadialError:
        return None


def _folder_of(spec: ModelSpec) -> Path | None:
    try:
        return checkpoint_folder(spec) or cached_folder(spec.source)
    except ModelError:
        return None
