"""What one visitor does with stories, beside what is done with every job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from radial.advice import advise
from radial.errors import RequestError
from radial.loading.devices import find_device
from radial.models.checkpoint import checkpoint_folder
from radial.models.find import find_model
from radial.models.hub.download import cached_folder
from radial.stories.fields import StoryFields, make_story
from radial.stories.request import StoryRequest
from radial.stories.script import Line, check_remember, looks_in, read_entries
from radial.stories.state import FilmState
from radial.video.film import picture_at
from radial_app.jobs.job import FINISHED, Job
from radial_app.server.service import Conflict, Missing, Service, find_fit
from radial_app.server.stories.views import (
    More,
    Story,
    check_bounds,
    check_count,
    read_story_body,
    segments_of,
    story_view,
)


class Stories:
    """Stories as a visitor sees and handles them. Used in one thread, for one request."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def create(self, fields: Mapping[str, Any]) -> Story:
        """Put a story into the queue.

        Raises:
            RequestError: a field breaks a rule, the model makes no stories, or too many jobs wait already.
        """
        lines, rest, output = read_story_body(fields)
        story = self._story(lines, rest)
        (job,) = self._service.add_jobs([Job(id="", request=story.request, story=story, output=output)])
        return self.view(job)

    def check(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What a story would become and take, and what to know of it; nothing is queued.

        Raises:
            RequestError: a field breaks a rule, or the model makes no stories.
        """
        lines, rest, _ = read_story_body(fields)
        story = self._story(lines, rest)
        spec, (lack, mend) = find_model(story.request.model), find_fit(story.request)
        times = segments_of(story, 0)
        return {
            "way": story.way, "seconds": times[-1].end, "pieces": story.count(),
            "segments": [one.model_dump(include={"begin", "end"}) for one in times],
            "remembers": None if story.memory is None else story.memory.model_dump(mode="json"),
            "request": self._service.inputs.fields(story.request), "lack": lack,
            "mend": mend and {name: mend[name] for name in ("height", "width", "precision") if name in mend},
            "on_disk": checkpoint_folder(spec) is not None or cached_folder(spec.source) is not None,
            "on_gpu": find_device(story.request.device) != "cpu", "notes": list(advise(story.request, spec)),
        }  # fmt: skip

    def get(self, id_: str) -> Job:
        """A story's job.

        Raises:
            RequestError: there is none of this id for this visitor.
        """
        try:
            job = self._service.get(id_)
        except Missing as error:
            raise Missing(f"there is no story {id_[:50]!r}") from error
        if job.story is None and not job.problem:
            raise Missing(f"{job.id} is a video, and no story")
        return job

    def view(self, job: Job) -> Story:
        """A story as the visitor sees it.

        Raises:
            RequestError: this version cannot read it.
        """
        if job.story is None:
            raise Conflict(f"story {job.id}: {job.problem}")
        told = replace(job, error=self._service.words(job.error))
        goes_on = (self._service.store.film_folder(job.id) / "story.json").is_file()
        return story_view(told, job.story, self._service.inputs, goes_on=goes_on)

    def go_on(self, id_: str, more: More) -> Story:
        """A new story out of one whose film has ended: its first segments, as they were made, and more lines, or the
        same with another memory.

        Raises:
            RequestError: it has not ended, what it goes on from is gone, or a line breaks a rule.
        """
        job = self.get(id_)
        if more.lines or not more.remember:
            check_count(more.lines)
        story = self._ended(job)
        kept = _remembered(story.lines if more.keep is None else story.lines[: more.keep], more)
        known = looks_in(kept) if kept else None
        added = read_entries(more.lines, known, "line") if more.lines else ()
        wanted = story.with_lines((*kept, *added))
        self._service.inputs.check(wanted.request)
        new = Job(
            id="", request=wanted.request, story=wanted, base=str(self._service.store.film_folder(job.id)),
            output=job.output.model_copy(update={"overwrite": False}),
        )  # fmt: skip
        (job,) = self._service.add_jobs([new])
        view = self.view(job)
        if not more.remember:
            return view
        note = _what_is_made_anew(wanted.alike_until(story.told()), len(kept))
        self._service.store.tell(job.id, "note", note)
        return view.model_copy(update={"notes": [*view.notes, note]})

    def film(self, id_: str) -> tuple[Path, int | None]:
        """A story's film: its file, or the one that grows where that has more, and how many bytes of that play.

        Raises:
            RequestError: there is none yet.
        """
        job = self.get(id_)
        path = self._service.store.film_folder(job.id) / "film.mp4"
        size = min(job.film_bytes, path.stat().st_size) if path.is_file() else 0
        if job.files and job.files[0].done and not (size and self._grew(job)):
            return self._service.file(id_), None
        if not size:
            raise Missing(f"story {job.id} has no film yet")
        return path, size

    def _grew(self, job: Job) -> bool:
        """Whether a film went on since its user had ended it early: what was published then is older."""
        if job.story is None or not job.files[0].partial:
            return False
        if job.state not in FINISHED:
            return True
        receipts = self._service.store.receipts(job.id)
        published = receipts[0]["story"]["lines"][-1]["end"] * job.story.fps if receipts else 0
        return (job.story.ends(job.pieces) or (0,))[-1] > round(published)

    def thumbnail(self, id_: str, number: int) -> Path:
        """A small picture from the middle of a segment that is made; segments count from 1.

        Raises:
            RequestError: there is no such segment, or it is not made yet.
        """
        job = self.get(id_)
        view = self.view(job)
        if number > len(view.segments) or not view.segments[number - 1].done:
            raise Missing(f"story {job.id} has no segment {number} yet")
        segment, state = view.segments[number - 1], FilmState(self._service.store.film_folder(job.id))
        assert job.story is not None
        last = max(n for n, (of, _) in enumerate(job.story.pieces()) if of == number - 1)
        if (mark := state.mark_of(last)) is not None and state.film.is_file():
            path = state.film
        else:  # what it goes on from is gone
            path, mark = self._service.file(id_), job.files[0].digest
        middle = (segment.begin + segment.end) / 2
        return self._service.keep_picture(f"{job.id}-segment-{number}-{mark}", lambda: picture_at(path, middle))

    def _story(self, entries: list[Any], fields: dict[str, Any]) -> StoryRequest:
        lines: tuple[Line, ...] = read_entries(entries, None, "line")
        own = {name: value for name, value in fields.items() if name in StoryFields.model_fields}
        rest = {name: value for name, value in fields.items() if name not in own}
        written = self._service.inputs.request(rest | {"prompt": lines[0].prompt})
        story = make_story(lines, written.model_dump(exclude={"prompt"}, exclude_unset=True) | own)
        check_bounds(story)
        return story

    def _ended(self, job: Job) -> StoryRequest:
        if job.story is None:
            raise Conflict(f"story {job.id}: {job.problem}")
        if job.state not in FINISHED:
            raise Conflict(f"story {job.id} is {job.state}: stop it first, and keep what there is")
        if not (self._service.store.film_folder(job.id) / "story.json").is_file():
            raise Missing(f"what story {job.id} goes on from is not there any more")
        return job.story


def _remembered(lines: Sequence[Line], more: More) -> tuple[Line, ...]:
    """Lines that stay, remembered as is wished.

    Raises:
        RequestError: one is none of them.
    """
    if away := [number for number in more.remember if not 1 <= number <= len(lines)]:
        raise RequestError(f"segment {away[0]} is none of the {len(lines)} that stay: its memory cannot be changed")
    return tuple(
        replace(line, remember=check_remember(more.remember[number], f"segment {number}"))
        if number in more.remember else line for number, line in enumerate(lines, 1)
    )  # fmt: skip


def _what_is_made_anew(stay: int, kept: int) -> str:
    if stay >= kept:
        return "no segment that is there reads the memory that was changed: all of them stay as they are"
    first = "segment 1 stays as it is" if stay == 1 else f"segments 1 to {stay} stay as they are"
    return f"{first}; from segment {stay + 1} on, the first that reads what was changed, the film is made anew"
