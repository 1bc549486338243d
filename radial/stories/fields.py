"""A story's settings beside those of its clips, as they are written in job files and over the web."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radial.errors import RequestError, explain_all
from radial.plans.story.memory import MemoryKind
from radial.stories.request import StoryRequest, make_story_request
from radial.stories.script import Line

_Count = Annotated[int, Field(ge=1, le=1024)]


class StoryFields(BaseModel):
    """What a story may say beside its lines and the fields of a clip's request; what is left open is as the adapter was
    tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seconds: Annotated[float, Field(gt=0, le=600)] | None = None
    remember: MemoryKind | None = None
    window_frames: _Count | None = None
    chunk_frames: _Count | None = None
    memory_frames: _Count | None = None
    memory_thinning: _Count | None = None
    memory_positions: _Count | None = None
    causal: bool = False
    read_decay: Annotated[float, Field(gt=0, le=16)] | None = None
    rectify_every: Annotated[int, Field(ge=0, le=4096)] = 1


OF_STORIES = tuple(name for name in StoryFields.model_fields if name != "seconds")


def make_story(lines: Sequence[Line], fields: Mapping[str, Any]) -> StoryRequest:
    """A story from its lines and all other fields: its own, and those of its clips.

    Raises:
        RequestError: a value is out of place, or the model cannot make a story.
    """
    own = {name: value for name, value in fields.items() if name in StoryFields.model_fields}
    rest = {name: value for name, value in fields.items() if name not in own}
    try:
        told = StoryFields.model_validate(own)
    except ValidationError as error:
        raise RequestError(explain_all(error.errors())) from error
    memory = told.model_dump(
        include={"window_frames", "chunk_frames", "memory_frames", "memory_thinning", "memory_positions"},
        exclude_none=True,
    )
    if told.remember is not None:
        memory["kind"] = told.remember
    return make_story_request(
        lines, rest, seconds=told.seconds, memory=memory, causal=told.causal, read_decay=told.read_decay,
        rectify_every=told.rectify_every,
    )  # fmt: skip
