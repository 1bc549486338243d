"""A job: one request, where its results go, and how far it has come."""

from __future__ import annotations

import hashlib
import json
import re
import string
import time
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from radial.errors import RadialError, RequestError, explain
from radial.input_files import KINDS, with_files
from radial.models.find import find_model, transformer_files_in
from radial.models.table import MODELS
from radial.request import GenerationRequest, make_request
from radial.shorthands import spell_out
from radial.stories.request import StoryRequest
from radial.video.encoding import Encoding
from radial_app.jobs.finishing import Finishing

State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
Control = Literal["", "pause", "finish", "cancel"]
OUTPUT_FOLDER = Path("outputs")
UNFINISHED: tuple[State, ...] = ("running", "queued", "paused")
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")

DEFAULT_NAME = "{slug}-{seed}"
_FIELDS = ("index", "slug", "seed", "model", "date", "time", "width", "height", "num_frames", "video", "job", "batch")
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # marks that turn the direction of writing
_LONGEST_NAME = 200  # bytes; what is added while a file is written must fit into 255
_SPEC = re.compile(r"0?\d?\d?")


class Output(BaseModel):
    """Where the videos of a job go.

    Attributes:
        folder: of the results.
        name: template of their names below it, without a suffix; names that are taken get a number.
        encoding: what kind of file.
        overwrite: whether the name's former file is replaced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=1000)

    folder: str = "outputs"
    name: str = DEFAULT_NAME
    encoding: Encoding = Field(default_factory=Encoding)
    overwrite: bool = False

    @field_validator("name")
    @classmethod
    def _template_is_known(cls, name: str) -> str:
        try:
            parts = list(string.Formatter().parse(name))
        except ValueError as error:
            raise ValueError(f"{name!r} is no template: {error}") from error
        for _, field_name, spec, conversion in parts:
            if field_name is not None and (field_name not in _FIELDS or conversion):
                raise ValueError(f"the template {name!r} has {{{field_name}}}; known are {', '.join(_FIELDS)}")
            if spec and not _SPEC.fullmatch(spec):
                raise ValueError(f"the template {name!r} has the format {spec!r}; widths such as 03 are known")
        if name.startswith("/") or ".." in Path(name).parts or not name.strip():
            raise ValueError(f"the template {name!r} must stay inside the output folder")
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _TURNING for c in name):
            raise ValueError(f"the template {name!r} has characters that no file name should have")
        return name

    def path(self, values: dict[str, Any], *, shorten: bool = False) -> Path:
        """The path of one video, from what its template names.

        Args:
            shorten: cut a name that is too long, as once a video is made, instead of refusing it.

        Raises:
            RequestError: its number format does not fit a field, or the name is too long.
        """
        parts = [_as_name(str(value)) if isinstance(value, str) else value for value in values.values()]
        try:
            name = self.name.format(**dict(zip(values, parts, strict=True)))
        except (ValueError, KeyError) as error:
            raise RequestError(f"the template {self.name!r} cannot be filled: {error}") from error
        if shorten:
            name = "/".join(_cut(part, _LONGEST_NAME) for part in name.split("/"))
        for part in Path(name).parts:
            if len(part.encode()) > _LONGEST_NAME:
                raise RequestError(
                    f"the template {self.name[:40]!r}... gives the name {part[:40]!r}... of {len(part.encode())} "
                    f"bytes; {_LONGEST_NAME} are the most"
                )
        return Path(self.folder) / f"{name}{self.encoding.suffix}"


@dataclass(frozen=True)
class ResultFile:
    """A video of a job: ``done`` once it has its name. Before that the digest tells whether a file of that name is
    this one. ``partial`` where its user ended it early."""

    path: str
    digest: str
    seed: int
    seconds: float = 0.0
    done: bool = False
    partial: bool = False


def load_key(request: GenerationRequest) -> str:
    """What must be loaded for a request, in one word: requests of one word share a model."""
    loras = [str(lora) for lora in request.loras]
    how = [request.device, request.dtype, request.task, request.memory, request.precision]
    return json.dumps([request.model, loras, *how])


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the store, as it was when read.

    Attributes:
        request: resolved, so that its seed is drawn and its limits are checked.
        position: order among jobs of the same priority.
        index: number within its batch, from 1.
        batch, source: which call it came from, and which line of which file.
        digest: of the request as it was written; tells what is done when a file is rendered again.
        attempts: times it was begun since it last got further.
        deferred_until: it waits until then, by the wall clock; for disk space, say.
        owner: the account it belongs to, where there are accounts.
        problem: why this version cannot read it; the request is then one that only stands for it.
        story: what film to make, where it is no clip; ``request`` is then how its clips are made.
        base: the folder of the film that it goes on from.
        pieces: of the film that are finished.
        finish: what is done to its clips when they are there, or to others, where it renders none.
        film_bytes: of the growing film that they take.
        pack: of those that are rendered together, until it ends; what they have in common.
    """

    id: str
    request: GenerationRequest
    output: Output = field(default_factory=Output)
    state: State = "queued"
    control: Control = ""
    priority: int = 0
    position: float = 0.0
    index: int = 1
    batch: str = ""
    source: str = ""
    digest: str = ""
    attempts: int = 0
    worker: str = ""
    stage: str = ""
    step: int = 0
    steps: int = 0
    video: int = 0
    eta: float | None = None
    recall: float | None = None
    attention_error: float | None = None
    error: str = ""
    files: tuple[ResultFile, ...] = ()
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    deferred_until: float = 0.0
    owner: str = ""
    favourite: bool = False
    problem: str = ""
    story: StoryRequest | None = None
    base: str = ""
    pieces: int = 0
    film_bytes: int = 0
    pack: str = ""
    finish: Finishing | None = None

    @property
    def renders(self) -> int:
        """Videos that it renders; none where it finishes clips that were there."""
        return 0 if self.beside else self.request.num_videos

    @property
    def results(self) -> int:
        """Videos that it makes: those that it renders, then those that are finished."""
        return self.renders if self.finish is None else max(1, 2 * self.renders)

    @property
    def beside(self) -> bool:
        """Whether it finishes clips that were there, and renders none."""
        return self.finish is not None and bool(self.finish.clips)

    @property
    def finished_encoding(self) -> Encoding:
        """What finished clips are kept as: MP4 of H.264, as good as what they are made of."""
        own = self.output.encoding
        return Encoding(metadata=own.metadata, crf=own.crf if own.chosen_codec == "h264" else None)

    def single(self, index: int) -> GenerationRequest:
        """The request of one of its videos."""
        return self.request.singles()[index % self.request.num_videos]

    @property
    def frames(self) -> int:
        """Frames of each of its videos."""
        if self.finish is not None and self.finish.clips:
            return self.finish.num_frames
        return self.request.clip_frames if self.story is None else self.story.ends(self.story.count())[-1]

    def name_values(self, request: GenerationRequest, video: int) -> dict[str, Any]:
        """What templates of names can tell of one of its videos."""
        now = time.localtime()
        return {
            "index": self.index, "slug": slug(request.prompt), "seed": request.seed, "model": request.model,
            "date": time.strftime("%Y-%m-%d", now), "time": time.strftime("%H%M%S", now), "width": request.width,
            "height": request.height, "num_frames": request.num_frames, "video": video + 1, "job": self.id,
            "batch": self.batch,
        }  # fmt: skip


def make_output(**fields: Any) -> Output:
    """An output from loose values.

    Raises:
        RequestError: one line that names each field, the value and the rule.
    """
    try:
        return Output(**fields)
    except ValidationError as error:
        raise RequestError(
            "; ".join(explain(p).removeprefix("encoding.").removeprefix("encoding ") for p in error.errors())
        ) from error


def anchored(request: GenerationRequest, base: Path | None = None) -> GenerationRequest:
    """A request whose files are found from wherever it is rendered: relative to ``base``, or to the current folder."""
    base = base or Path.cwd()
    changes = with_files(request.model_dump(), lambda _, given: str(base / Path(given).expanduser()))
    model = base / Path(request.model).expanduser()
    files = [base / file.expanduser() for file in transformer_files_in(request.model)]
    if request.model not in MODELS and (model.is_dir() or (files and all(file.is_file() for file in files))):
        changes["model"] = ",".join(str(file) for file in files) or str(model)
    if request.enhance is not None and (base / Path(request.enhance).expanduser()).is_dir():
        changes["enhance"] = str(base / Path(request.enhance).expanduser())
    changes["loras"] = [
        lora.model_dump()
        | ({} if lora.path.startswith("bundled:") else {"path": str(base / Path(lora.path).expanduser())})
        for lora in request.loras
    ]
    return request.with_values(**changes)


_WHATEVER_THE_MODEL = (
    "prompt", "enhance", "original_prompt", "negative_prompt", *(name for name in KINDS if name != "policy"),
    "strength", "image_fit", "seed", "num_videos", "device", "dtype", "memory", "precision",
)  # fmt: skip


def changed_request(request: GenerationRequest, changes: dict[str, Any]) -> GenerationRequest:
    """A request with other values; what followed from the old ones by default follows from the new.

    Raises:
        RequestError: a value breaks a rule.
    """
    fields, changes = json.loads(request.model_dump_json()), spell_out(changes, request)
    try:
        spec = find_model(request.model)
    except RadialError as error:  # it was deleted or moved
        if "model" not in changes:
            raise RequestError(
                f"{Path(request.model).name} cannot be used any more ({error}): give another model"
            ) from error
        kept = {name: value for name, value in fields.items() if name in _WHATEVER_THE_MODEL}
        return anchored(make_request(**kept | changes)).resolve()
    if "model" in changes:
        for name in ("num_frames", "num_inference_steps"):
            if fields[name] == getattr(spec, name):
                del fields[name]
    own = {"prompt": "x", "model": request.model, "num_frames": request.num_frames,
           "num_inference_steps": request.num_inference_steps, "loras": fields["loras"], "strength": fields["strength"],
           **{name: fields[name] for name in KINDS if name != "last_image"}}  # fmt: skip
    for name, value in json.loads(make_request(**own).resolve().model_dump_json()).items():
        if name not in own and name not in ("seed", "device", "dtype", "memory") and fields.get(name) == value:
            del fields[name]
    if fields.get("loras") == [{"path": spec.long_adapter, "weight": 1.0}]:
        del fields["loras"]
    return anchored(make_request(**fields | changes)).resolve()


def check_story_output(output: Output) -> None:
    """Raise RequestError where a story's film cannot be kept as something: its parts are encoded as they come."""
    encoding = output.encoding
    if encoding.format != "mp4" or encoding.chosen_codec != "h264" or encoding.crf is not None:
        raise RequestError("a story becomes an MP4 of H.264, of a quality of its own: leave format, codec and crf out")


def changed(job: Job, changes: dict[str, Any]) -> tuple[GenerationRequest, StoryRequest | None]:
    """What a job asks for with other values.

    Raises:
        RequestError: a value breaks a rule, or is one of a story's that stays.
    """
    if job.beside and changes:
        raise RequestError(
            "this job finishes a clip and renders none: queue it anew where something else is to be done"
        )
    if job.beside:
        return job.request, None
    if job.story is None:
        return changed_request(job.request, changes), None
    if other := sorted(changes.keys() - {"seed"}):
        raise RequestError(
            f"{other[0]} of a story that is queued stays as it is, and so does all but its seed: queue it anew"
        )
    request = job.request.with_values(**changes).resolve()
    return request, replace(job.story, request=request)


def digest_of(
    request: GenerationRequest, output: Output, count: int = 0, story: StoryRequest | None = None,
    finish: Finishing | None = None,
) -> str:  # fmt: skip
    """Tells a request that was written before: the ``count``-th of its kind in one file."""
    where = f"{output.encoding.model_dump_json()} {output.folder}"
    if story is not None:
        where += f" {json.dumps(story.asked(), sort_keys=True)}"
    if finish is not None:
        where += f" {finish.model_dump_json()}"
    # As it was written when a sampler that was left open had a word of its own.
    written = request.model_copy(update={"sampler": request.sampler or "model"})
    text = f"{written.model_dump_json(exclude={'device', *request.later_fields()})} {where} {count}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def slug(text: str, length: int = 60) -> str:
    """A prompt as a file name: letters of every script, digits and dashes, cut between words."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", text).lower()).strip("-")
    if len(words) > length:
        words = words[: length + 1].rpartition("-")[0] or words[:length]
    return words or "video"


def _as_name(text: str) -> str:
    """Text without what would lead to another folder."""
    return _cut(re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:80], 120) or "-"


def _cut(text: str, size: int) -> str:
    """As much of a text as takes so many bytes."""
    return text.encode()[:size].decode(errors="ignore")
