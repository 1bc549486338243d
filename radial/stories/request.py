"""A story as asked for: its lines, the settings of its clips, and the way it is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError

from radial.controls import STEERING
from radial.errors import RequestError, explain_all
from radial.models.find import find_model, hub_file
from radial.models.lora_settings import adapter_file, check_adapter_file, read_adapter_settings
from radial.models.spec import ModelSpec
from radial.models.table import MODELS
from radial.plans.pattern import RadialPattern
from radial.plans.story.memory import StoryMemory, StoryPlan
from radial.request import GenerationRequest, make_request
from radial.stories.script import Line, check_seconds, is_number, lines_told

Way = Literal["chunks", "windows"]
# Fields of a clip's request that count nothing in a story; and in one that is made chunk by chunk, whose sampling is
# its own.
OF_CLIPS_ALONE = (*STEERING, "last_image", "num_videos", "then", "num_frames")
_OF_MODELS = ("stride", "native_frames")
_WHOLE_CLIPS = ("decoder", "positions", "riflex", "guidance_scale_2", "true_cfg_scale")
OVERLAP = 5  # frames that a window of a text-to-video model begins with: two latent ones


@dataclass(frozen=True)
class StoryRequest:
    """What film to make.

    Attributes:
        lines: its segments.
        request: how its clips are made, resolved; its prompt counts nothing.
        seconds: of a line that does not say.
        memory: what a chunk sees of those before; None for a model that makes a story window by window.
        read_decay: of the radial rule by which denoising reads the cache; None to read all of it.
        rectify_every: see :class:`~radial.stories.engine.Sampling`.
        stride: frames of a latent one of its model.
        native_frames: of that model's own clips. Both are kept here, so that a story says its times when its model is
            gone.
    """

    lines: tuple[Line, ...]
    request: GenerationRequest
    seconds: float
    memory: StoryMemory | None
    stride: int
    native_frames: int
    read_decay: float | None = None
    rectify_every: int = 1

    def __post_init__(self) -> None:
        told = next((one for one, line in enumerate(self.lines, 1) if line.remember is not None), None)
        if told is not None and self.memory is None:
            raise RequestError(
                f"line {told} says how it is remembered, and this story is made window by window, without a memory: "
                "leave its remember out, or take a model and an adapter that make stories in chunks"
            )
        if told is not None:
            self.plan()  # or it raises

    @property
    def way(self) -> Way:
        return "windows" if self.memory is None else "chunks"

    @property
    def fps(self) -> int:
        assert self.request.fps is not None
        return self.request.fps

    def plan(self) -> StoryPlan:
        """The chunks of a story that is made in chunks: each line's time, to the nearest one."""
        assert self.memory is not None
        told = [(number, line.remember) for number, line in enumerate(self.lines)]
        return StoryPlan(
            self.memory, tuple(count for count, _ in self._parts()),
            cuts=tuple(number for number, line in enumerate(self.lines) if line.cut),
            pinned=tuple(number for number, remember in told if remember == "pin"),
            dropped=tuple(number for number, remember in told if remember == "drop"),
            replaced=tuple((number, remember - 1) for number, remember in told if isinstance(remember, int)),
        )  # fmt: skip

    def pieces(self) -> tuple[tuple[int, int], ...]:
        """The pieces that the film is made of, chunks or windows: each one's segment, and the latent frames that it
        adds beside the first of all."""
        return tuple(
            (number, frames * (place + 1) // count - frames * place // count)
            for number, (count, frames) in enumerate(self._parts())
            for place in range(count)
        )

    def count(self) -> int:
        """How many pieces the film is made of."""
        return sum(count for count, _ in self._parts())

    def ends(self, pieces: int) -> tuple[int, ...]:
        """When so many pieces are there, the film's frames at the end of each segment that has any."""
        found, latents = [], 0
        for count, frames in self._parts():
            if pieces <= 0:
                break
            latents += frames * min(pieces, count) // count
            pieces -= count
            found.append(1 + latents * self.stride)
        return tuple(found)

    def segment_at(self, pieces: int) -> int:
        """The segment of the piece that is made when so many are there; the last one where all are."""
        for number, (count, _) in enumerate(self._parts()):
            if pieces < count:
                return number
            pieces -= count
        return len(self.lines) - 1

    def _parts(self) -> tuple[tuple[int, int], ...]:
        """Of each segment, how many pieces it is made in, and the latent frames that these add."""
        stride = self.stride
        times = [(self.seconds if line.seconds is None else line.seconds) * self.fps for line in self.lines]
        if self.memory is not None:
            size = self.memory.chunk_frames
            chunks = (max(1, round(time / (size * stride))) for time in times)
            return tuple((count, count * size) for count in chunks)
        # Beside the frames that it begins with: a native clip is not cut in two for a latent frame more.
        most = max(1, (self.native_frames - 1) // stride)
        latents = (max(1, round(time / stride)) for time in times)
        return tuple((-(-frames // most), frames) for frames in latents)

    def seed_of(self, piece: int, most: int) -> int:
        """The seed of a piece, below ``most``: one of its own, however many were made in this process."""
        seed = self.lines[self.segment_at(piece)].seed
        return ((self.request.seed if seed is None else seed) * 1_000_003 + piece) % most

    def with_lines(self, lines: Sequence[Line]) -> StoryRequest:
        """The same with other segments."""
        request = self.request.model_copy(update={"prompt": lines[0].prompt})  # by which the film is known
        return replace(self, lines=tuple(lines), request=request)

    def alike_until(self, told: dict[str, Any]) -> int:
        """How many of its first segments are those of another story, as :meth:`told` tells of it, and remember the
        same.

        Raises:
            RequestError: that one's lines break a rule.
        """
        alike = self.lines_alike_until(told)
        theirs = self.with_lines(lines_told(told["lines"])).unusual_reads() if alike else {}
        own, last = self.unusual_reads(), sum(count for count, _ in self._parts()[:alike])
        return next((self.segment_at(piece) for piece in range(last) if own.get(piece) != theirs.get(piece)), alike)

    def lines_alike_until(self, told: dict[str, Any]) -> int:
        """How many of its first lines are those of another story, whatever they say of memory."""
        lines = told.get("lines")
        theirs = lines if isinstance(lines, list) else []
        own = [replace(line, remember=None).told() for line in self.lines]
        others = [{k: v for k, v in one.items() if k != "remember"} if isinstance(one, dict) else one for one in theirs]
        pairs = zip(own, others, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(own), len(others)))

    def unusual_reads(self) -> dict[int, str]:
        """By piece, a digest of what it sees of the past, where that is not what it would see if no line said how it is
        remembered."""
        if all(line.remember is None for line in self.lines):
            return {}
        plan, usual = self.plan(), replace(self, lines=tuple(replace(one, remember=None) for one in self.lines)).plan()

        def seen(plan: StoryPlan, chunk: int) -> Any:
            reads = plan.reads(chunk)
            return reads if self.read_decay is None else [(read, plan.is_read_whole(read)) for read in reads]

        return {
            chunk: hashlib.sha256(repr(found).encode()).hexdigest() for chunk in range(plan.chunks)
            if (found := seen(plan, chunk)) != seen(usual, chunk)
        }  # fmt: skip

    def told(self) -> dict[str, Any]:
        """All of it, in values for JSON."""
        return self.asked() | {"stride": self.stride, "native_frames": self.native_frames}

    def asked(self) -> dict[str, Any]:
        """The same without what its model says."""
        return {
            "lines": [line.told() for line in self.lines], "seconds": self.seconds, "way": self.way,
            "memory": None if self.memory is None else self.memory.model_dump(mode="json"),
            "read_decay": self.read_decay, "rectify_every": self.rectify_every,
        }  # fmt: skip

    def digest(self, model: str) -> str:
        """What every piece of the film depends on beside its lines and those before, with the model's fingerprint."""
        told = self.asked() | {"lines": None, "seconds": None, "model": model}
        told["request"] = self.request.model_dump(mode="json", exclude={"prompt", "device", "memory", "num_frames"})
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def read_told(receipt: dict[str, Any]) -> StoryRequest:
    """The story that a film's receipt tells of.

    Raises:
        RequestError: it is no film of a story, or of another version.
    """
    story, fields = receipt.get("story"), receipt.get("request")
    if not isinstance(story, dict) or not isinstance(fields, dict):
        raise RequestError("this is a clip, and no film of a story: `radial generate --extend` goes on with it")
    try:
        request = make_request(**{str(key): value for key, value in fields.items()}).resolve()
        return story_told(request, {key: value for key, value in story.items() if key not in _OF_MODELS})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RequestError("the film's receipt does not say its story in a way that this version reads") from error


def story_told(request: GenerationRequest, told: dict[str, Any]) -> StoryRequest:
    """The story that :meth:`StoryRequest.told` tells of, whose clips are made as a resolved request says. What its
    model says, where it is not told, the model is asked for; the hub is not.

    Raises:
        KeyError, TypeError, ValueError: a value is missing, or breaks a rule.
    """
    lines = lines_told(told["lines"])
    memory = None if told["memory"] is None else StoryMemory.model_validate(told["memory"])
    seconds, decay, every = check_seconds(told["seconds"], "a line"), told["read_decay"], told["rectify_every"]
    if seconds is None or not (decay is None or is_number(decay)) or not is_number(every):
        raise TypeError("a number is none")
    _check_reads(decay, every)
    if not any(name in told for name in _OF_MODELS):  # of an earlier version
        spec = find_model(request.model, online=False)
        told = told | {"stride": spec.stride[0], "native_frames": spec.native_frames}
    stride, native = (told[name] for name in _OF_MODELS)
    if not all(isinstance(one, int) and not isinstance(one, bool) and 1 <= one <= 1 << 16 for one in (stride, native)):
        raise TypeError("a count of frames is none")
    return StoryRequest(lines, request, seconds, memory, stride, native, decay, int(every))


def make_story_request(
    lines: Sequence[Line], fields: dict[str, Any], *, seconds: float | None = None,
    memory: dict[str, Any] | None = None, causal: bool = False, read_decay: float | None = None,
    rectify_every: int = 1,
) -> StoryRequest:  # fmt: skip
    """A story from loose values.

    Args:
        fields: of a :class:`~radial.request.GenerationRequest`, without a prompt and a length.
        seconds: of a line that does not say; a native clip's when left out.
        memory: what a chunk sees, in place of what the adapter says that the model was tuned on.
        causal: the model makes stories chunk by chunk, though no adapter says so.

    Raises:
        RequestError: a value is out of place, or the model cannot make a story; those that can are named.
    """
    spec = find_model(fields.get("model", "tiny"))
    request = make_request(prompt=lines[0].prompt, **fields)
    _check_has_no_part(request, OF_CLIPS_ALONE, "a story")
    check_seconds(seconds, "seconds")
    if rectify_every != 1 and read_decay is None:
        raise RequestError(f"rectify_every {rectify_every} counts only with read_decay: give both, or neither")
    _check_reads(read_decay, rectify_every)
    tuned = memory_of(request)
    if tuned is None and not causal:
        if memory or read_decay is not None or rectify_every != 1:
            raise RequestError(
                f"{spec.name} makes a story window by window, without a memory: add --lora with an adapter that was "
                'tuned with objective = "causal", or say --causal of a model that is so by itself'
            )
        check_windows(spec, request)
        frames = spec.native_frames
    else:
        chosen = StoryMemory() if tuned is None else tuned
        tuned = _changed(chosen, memory or {})
        if spec.has_two_transformers or spec.text_pipeline != "WanPipeline" or request.starts_from_image:
            raise RequestError(f"{spec.name} makes no story chunk by chunk; models that can: {some_names(_in_chunks)}")
        _check_has_no_part(request, _WHOLE_CLIPS, "a story that is made chunk by chunk")
        if request.attention not in (None, "dense"):
            raise RequestError(f"what a chunk sees is its memory's to say: leave attention {request.attention} out")
        frames = spec.first_frame + tuned.chunk_frames * spec.stride[0]
    # Dense: what a chunk sees is its memory's to say; windows take what the model's own clips take.
    own = {"long_adapter": False} | ({} if tuned is None else {"attention": "dense"})
    request = request.with_values(num_frames=frames, **own).resolve()
    if request.guidance_start or request.guidance_end != 1 or request.cache != "off":
        raise RequestError("a story takes no guidance_start, guidance_end or cache")
    native = (spec.native_frames - spec.first_frame) / (request.fps or spec.fps)
    return StoryRequest(
        tuple(lines), request, native if seconds is None else seconds, tuned, spec.stride[0], spec.native_frames,
        read_decay, rectify_every,
    )  # fmt: skip


def _check_has_no_part(request: GenerationRequest, names: Sequence[str], whose: str) -> None:
    """Raise RequestError where a request says something that would count nothing."""
    given = [name for name in names if getattr(request, name) != GenerationRequest.model_fields[name].default]
    if given:
        raise RequestError(f"{whose} takes no {', '.join(given)}: leave it out")


def _check_reads(read_decay: float | None, rectify_every: int) -> None:
    """Raise RequestError where the cache cannot be read and written in such a way."""
    if read_decay is not None:
        try:
            RadialPattern(decay=read_decay)
        except RequestError as error:
            raise RequestError(f"read_{error}") from error
    if rectify_every < 0:
        raise RequestError(f"rectify_every must be 0 or more chunks, not {rectify_every}")


def _changed(memory: StoryMemory, changes: dict[str, Any]) -> StoryMemory:
    if changes.get("kind", memory.kind) != memory.kind:  # what is of the other kind alone
        if changes["kind"] == "learned":
            raise RequestError(
                f"remember learned is for adapters that were tuned with it, and here it is {memory.kind}: leave "
                "remember out, or choose another"
            )
        changes = {"memory_frames": None, "memory_thinning": 1, "memory_tokens": None} | changes
    try:
        return StoryMemory.model_validate(memory.model_dump() | changes)
    except ValidationError as error:
        raise RequestError(explain_all(error.errors())) from error


def memory_of(request: GenerationRequest) -> StoryMemory | None:
    """What the first adapter that makes a model causal says.

    Raises:
        ModelError: an adapter's file is missing or broken.
    """
    for lora in request.loras:
        if hub_file(lora.path) is None:
            check_adapter_file(adapter_file(lora.path))
        settings = read_adapter_settings(adapter_file(lora.path))
        if settings is not None and settings.memory is not None:
            return settings.memory
    return None


def check_windows(spec: ModelSpec, request: GenerationRequest) -> None:
    """Raise RequestError where a model cannot make a story window by window."""
    if request.starts_from_image:
        if request.extend is not None:
            raise RequestError("a story starts from an image, and goes on with a film by --continue: leave extend out")
        if spec.image_pipeline is not None and spec.bucket_side is None and not spec.needs_last_image:
            return
        able = some_names(lambda one: one.image_pipeline is not None and one.bucket_side is None)
        raise RequestError(f"{spec.name} makes no story from an image; models that can: {able}")
    if spec.text_pipeline == "WanPipeline":
        return
    if spec.image_pipeline is not None and spec.bucket_side is None and not spec.needs_last_image:
        raise RequestError(f"{spec.name} makes a story from an image on: give --image")
    raise RequestError(f"{spec.name} cannot make a story; models that can: {some_names(_in_windows)}")


def ways_of(spec: ModelSpec) -> list[str]:
    """How a model makes stories: in ``chunks``, with an adapter that was tuned for it; in ``windows``; and ``image``
    where these must start from one."""
    needs_image = _in_windows(spec) and spec.text_pipeline != "WanPipeline"
    found = {"chunks": _in_chunks(spec), "windows": _in_windows(spec), "image": needs_image}
    return [name for name, is_so in found.items() if is_so]


def some_names(able: Any) -> str:
    """The names of models that can do something."""
    return ", ".join(spec.name for spec in MODELS.values() if able(spec))


def _in_windows(spec: ModelSpec) -> bool:
    from_image = spec.image_pipeline is not None and spec.bucket_side is None and not spec.needs_last_image
    return spec.text_pipeline == "WanPipeline" or from_image


def _in_chunks(spec: ModelSpec) -> bool:
    return spec.text_pipeline == "WanPipeline" and not spec.has_two_transformers
