"""What the REST interface takes and tells of stories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, create_model

from radial.errors import RequestError
from radial.field_words import STORY_WORDS, WORDS
from radial.request import MAX_LORAS, GenerationRequest
from radial.stories.fields import StoryFields
from radial.stories.request import OF_CLIPS_ALONE, StoryRequest
from radial_app.jobs.job import Job, Output, State, check_story_output
from radial_app.server.answers import InvalidFields
from radial_app.server.uploads import Inputs
from radial_app.server.views import FileRequest, Problem, Status, Video, VideoFile, output_of, video_of

MOST_LINES = 256  # of a story that comes over the web
MOST_SECONDS = 3600.0  # of its film
_OF_A_CLIP = {"prompt", "extend", "cache", "guidance_start", "guidance_end", *OF_CLIPS_ALONE}
_ENTRY = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["prompt"],
            "properties": {
                "prompt": {"type": "string"}, "name": {"type": "string", "maxLength": 32},
                "look": {"type": "string", "maxLength": 20_000},
                "seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": 600}, "cut": {"type": "boolean"},
                "seed": {"type": "integer", "minimum": 0},
                "remember": {"anyOf": [{"enum": ["pin", "drop"]}, {"type": "integer", "minimum": 1}]},
            },
        },
    ]
}  # fmt: skip
# Of how many there may be a story's own words tell.
_Lines = Annotated[list[Any], Field(json_schema_extra={"items": _ENTRY, "minItems": 1, "maxItems": MOST_LINES})]
_MoreLines = Annotated[list[Any], Field(json_schema_extra={"items": _ENTRY, "maxItems": MOST_LINES})]


def _add_words(schema: dict[str, Any]) -> None:
    for name, field in schema.get("properties", {}).items():
        if words := (WORDS | STORY_WORDS).get(name):
            field["description"] = words


# A story as it comes over the web: its lines, what is its own, and the fields of its clips' request.
_FIELDS: dict[str, Any] = {
    "lines": (_Lines, ...), "size": (Annotated[str, Field(max_length=20)] | None, None),
    "preset": (Annotated[str, Field(max_length=40)] | None, None), "file": (FileRequest | None, None),
    **{name: (field.annotation, field)
       for name, field in GenerationRequest.model_fields.items() if name not in _OF_A_CLIP},
    "loras": (Annotated[list[Any], Field(max_length=MAX_LORAS)], ()),  # by name, for whom paths are found
}  # fmt: skip
StoryBody: Any = create_model(
    "StoryBody", __base__=StoryFields,
    __doc__="A story: its lines, and how its clips are made, as in a video's request. The image that it starts from is "
    "an upload's id; adapters and checkpoints are names.", **_FIELDS,
)  # fmt: skip
StoryBody.model_config = StoryFields.model_config | ConfigDict(json_schema_extra=_add_words, str_max_length=20_000)
StoryBody.model_rebuild(force=True)


class More(BaseModel):
    """What a story whose film has ended goes on with: more lines, behind all of its segments or behind the first
    ``keep`` of them, whose film stays as it is; and, by their numbers, how segments that stay are to be remembered, by
    which the film is made anew from the first one on that reads what was changed."""

    model_config = ConfigDict(extra="forbid")

    lines: _MoreLines = Field(default_factory=list)
    keep: Annotated[int, Field(ge=0, le=4096)] | None = None
    remember: Annotated[dict[int, StrictInt | Literal["pin", "drop"] | None], Field(max_length=4096)] = Field(
        default_factory=dict
    )


def read_story_body(fields: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any], Output]:
    """The lines and other fields of a story as it came over the web, and what its film is kept as.

    Raises:
        RequestError: a field breaks a rule.
    """
    try:
        body = StoryBody.model_validate(dict(fields))
    except ValidationError as error:
        raise InvalidFields(error.errors()) from error
    check_count(body.lines)
    output = output_of(body.file)
    check_story_output(output)
    return body.lines, body.model_dump(mode="json", exclude_unset=True, exclude={"file", "lines"}), output


def check_count(lines: Sequence[Any]) -> None:
    """Raise RequestError for a story of too many lines to come over the web, or of none."""
    if not 1 <= len(lines) <= MOST_LINES:
        raise RequestError(f"lines must be from 1 to {MOST_LINES} prompts, not {len(lines)}")


def check_bounds(story: StoryRequest | None) -> None:
    """Raise RequestError for a story that is too long to come over the web."""
    if story is None:
        return
    check_count(story.lines)
    seconds = sum(story.seconds if line.seconds is None else line.seconds for line in story.lines)
    if seconds > MOST_SECONDS:
        raise RequestError(f"a film lasts at most {MOST_SECONDS:g} seconds, not {seconds:g}")


class Segment(BaseModel):
    """A segment of a story: its line, and what its figure looks like; from when to when of the film it is, in seconds,
    whether it is made, and how it is remembered, where not as others: ``pin``, ``drop``, or the number of the segment
    whose memory is read in its place."""

    prompt: str
    name: str | None
    look: str | None
    returns: bool
    cut: bool
    seconds: float | None
    seed: int | None
    remember: Literal["pin", "drop"] | int | None
    begin: float
    end: float
    done: bool


class Story(BaseModel):
    """A story, and the film that it becomes: ``film_bytes`` of it play already, for ``playable_seconds``. A line that
    does not say otherwise lasts ``line_seconds``; ``goes_on`` says whether what its film goes on from is there."""

    id: str
    object: Literal["story"] = "story"
    status: Status
    state: State
    progress: int
    created_at: int
    started_at: int | None
    completed_at: int | None
    model: str
    size: str
    fps: int
    seconds: float
    line_seconds: float
    way: Literal["chunks", "windows"]
    remembers: dict[str, Any] | None
    segment: int
    segments: list[Segment]
    pieces_done: int
    pieces: int
    playable_seconds: float
    film_bytes: int
    goes_on: bool
    stage: str
    step: int
    steps: int
    eta: float | None
    control: str
    error: Problem | None
    note: str
    files: list[VideoFile]
    owner: str
    request: dict[str, Any]
    notes: list[str]


_AS_OF_VIDEOS = {name for name in Story.model_fields if name in Video.model_fields} - {"object", "seconds"}


class StoryList(BaseModel):
    """A page of stories, the latest first."""

    object: Literal["list"] = "list"
    data: list[Story]
    has_more: bool


def segments_of(story: StoryRequest, pieces: int) -> list[Segment]:
    """A story's segments, when so many pieces of its film are there."""
    planned, there = story.ends(story.count()), story.ends(pieces)
    begins = (0, *planned[:-1])
    return [
        Segment(
            prompt=line.prompt, name=line.name, look=line.look, returns=line.returns, cut=line.cut,
            seconds=line.seconds, seed=line.seed, remember=line.remember, begin=round(begin / story.fps, 3),
            end=round(end / story.fps, 3), done=number < len(there) and there[number] == end,
        )
        for number, (line, begin, end) in enumerate(zip(story.lines, begins, planned, strict=True))
    ]  # fmt: skip


def story_view(job: Job, story: StoryRequest, inputs: Inputs, *, goes_on: bool) -> Story:
    """A job of a story as the web sees it; ``goes_on`` where what its film goes on from is there."""
    video = video_of(job, inputs)
    pieces = story.count() if job.state == "done" else job.pieces
    there = story.ends(pieces)
    memory = None if story.memory is None else story.memory.model_dump(mode="json")
    return Story(
        **video.model_dump(include=_AS_OF_VIDEOS), way=story.way, remembers=memory, seconds=float(video.seconds),
        line_seconds=story.seconds,
        segment=story.segment_at(pieces) + 1, segments=segments_of(story, pieces), pieces_done=pieces,
        pieces=story.count(), playable_seconds=round(there[-1] / story.fps, 3) if there else 0.0,
        film_bytes=job.film_bytes, goes_on=goes_on,
    )  # fmt: skip
