"""From a story to its film: piece by piece, each in the film before the next is begun, and on where it was stopped."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from radial.errors import GenerationError, OutputError, RequestError
from radial.files import check_output
from radial.generation.receipt import make_receipt
from radial.generation.watch import Event, OnEvent, device_errors
from radial.loading.load import LoadedModel, fingerprint, fingerprint_files, load, quiet
from radial.stories.chunks import Chunks
from radial.stories.request import StoryRequest
from radial.stories.state import FilmState, Piece, state_folder
from radial.stories.windows import Windows
from radial.video.encoding import Frames
from radial.video.film import Film, GrowingFilm, finish_film


@dataclass(frozen=True)
class Made:
    """A piece that was finished: its number, of how many; its segment, of how many; the film so far, its seconds and
    bytes; whether it was there before, and if not, the piece's last frame."""

    piece: int
    pieces: int
    segment: int
    segments: int
    film: Path
    seconds: float
    size: int
    taken_up: bool
    frame: Frames | None = None


class Maker(Protocol):
    """Makes the pieces of a film in order."""

    def make(self, piece: int, on_step: Callable[[int], None]) -> tuple[Frames, dict[str, Tensor]]: ...

    def restore(self, piece: int, tensors: dict[str, Tensor], until: int) -> None: ...

    def close(self) -> None: ...


def make_film(
    story: StoryRequest, output: Path, *, model: LoadedModel | None = None, overwrite: bool = False,
    anew: bool = False, folder: Path | None = None, base: FilmState | None = None,
    on_event: OnEvent = lambda event: None, on_made: Callable[[Made], None] = lambda made: None,
) -> Path:  # fmt: skip
    """Make a story's film, or go on with one that was stopped, or whose story has grown.

    Args:
        output: the file, an MP4.
        model: a model loaded before.
        overwrite: replace the file.
        anew: make anew what was made of another story, or in another way.
        folder: of the film in the making; beside ``output`` when left out.
        base: see :func:`grow_film`.
        on_event: told about loading, and every denoising step.
        on_made: told about every piece that is in the film.

    Raises:
        RequestError: a value is out of place, or what was made before is of another story.
        ModelError: the model cannot be loaded, or makes no stories in this way.
        OutputError: a place cannot be written, or another process is making the film; what is finished is playable, and
            goes on from there.
        GenerationError: memory ran out or the latents stopped being numbers.
    """
    check_output(output, ".mp4", overwrite=overwrite)
    state = FilmState(folder or state_folder(output))
    with state.locked():
        if model is None:
            on_event(Event("load"))
            model = load(story.request, lambda done, total: on_event(Event("download", done >> 20, total >> 20)))
        film = grow_film(story, state, model, base=base, anew=anew, on_event=on_event, on_made=on_made)
        finish_film(film.path, output, film.receipt, overwrite=overwrite)
    return output


def grow_film(
    story: StoryRequest, state: FilmState, model: LoadedModel, *, base: FilmState | None = None, anew: bool = False,
    on_event: OnEvent = lambda event: None, on_made: Callable[[Made], None] = lambda made: None,
    is_enough: Callable[[], bool] = lambda: False,
) -> Film:  # fmt: skip
    """Make what is not there yet of a story's film, in a folder that is locked.

    Args:
        base: another film, from which this one goes on where nothing of it was begun: the segments that are alike stay
            as they were made, at every attempt, or it is an error.
        anew: make anew what was made of another story, or in another way; a note says so.
        is_enough: asked after every step; once it says so, the film ends with the last piece that is there, of which it
            has one at least.

    Raises:
        RequestError, OutputError, GenerationError: as :func:`make_film` does.
    """
    if story.stride != model.spec.stride[0]:
        raise RequestError(
            f"the story is for a model of {story.stride} frames a latent one, and {model.spec.name} has "
            f"{model.spec.stride[0]}: make it as a story of its own"
        )
    for note in (*model.notes, *_notes(story, model)):
        on_event(Event("load", note=note))
    hint = "while a part was made; what is finished plays, and a smaller size or a shorter memory takes less"
    with device_errors(model.device, lambda: hint):
        maker: Maker = Windows(story, model, state.folder) if story.memory is None else Chunks(story, model)
        try:
            with quiet():
                made, seconds = _render(story, model, maker, state, base, anew, on_event, on_made, is_enough)
        finally:
            maker.close()
    receipt = _receipt(story, model, story.ends(made), seconds)
    return Film(state.film, receipt, made == story.count())


class _EnoughError(Exception):
    """The film ends with what is there of it."""


def _render(
    story: StoryRequest, model: LoadedModel, maker: Maker, state: FilmState, base: FilmState | None, anew: bool,
    on_event: OnEvent, on_made: Callable[[Made], None], is_enough: Callable[[], bool],
) -> tuple[int, float]:  # fmt: skip
    """Make what is not there yet: how many pieces there are then, and how many seconds all of them took, at whatever
    attempt."""
    pieces, stride = story.pieces(), story.stride
    added = [stride * latents + (1 if number == 0 else 0) for number, (_, latents) in enumerate(pieces)]
    about, frames = _abouts(story, model, added), 0
    there = _take_up(story, model, state, about, base, on_event, anew=anew)
    seconds = sum(piece.seconds for piece in there)

    def tell(number: int, size: int, *, taken_up: bool, frame: Frames | None = None) -> None:
        nonlocal frames
        frames += added[number]
        on_made(Made(number, len(pieces), pieces[number][0], len(story.lines), state.film, frames / story.fps, size,
                     taken_up, frame))  # fmt: skip

    last = there[-1] if there else Piece("", {})
    film = GrowingFilm(state.film, story.fps, size=last.size, frames=last.frames)
    try:
        for number, piece in enumerate(there):
            maker.restore(number, piece.tensors, len(there))
            tell(number, piece.size, taken_up=True)
        steps = story.request.num_inference_steps or 1
        for number in range(len(there), len(pieces)):
            if number and is_enough():
                return number, seconds
            began = time.monotonic()
            _check_room(state.folder)

            def on_step(step: int, number: int = number) -> None:
                on_event(Event("denoise", step + 1, steps, number))
                if is_enough() and number:
                    raise _EnoughError

            try:
                made, tensors = maker.make(number, on_step)
            except _EnoughError:
                return number, seconds
            if len(made) != added[number]:
                raise GenerationError(f"piece {number + 1} has {len(made)} frames, not {added[number]}")
            size = film.append(made)
            took = round(time.monotonic() - began, 3)
            state.add(number, Piece(about[number], tensors, size, film.frames, took))
            seconds += took
            tell(number, size, taken_up=False, frame=made[-1])
    finally:
        film.close()
    return len(pieces), seconds


def _take_up(
    story: StoryRequest, model: LoadedModel, state: FilmState, about: list[str], base: FilmState | None,
    on_event: OnEvent, *, anew: bool,
) -> list[Piece]:  # fmt: skip
    """What was made before and counts; what does not is no more."""
    told, begun = state.told(), True
    kept = told.get("kept") if base is not None else 0  # segments, of the film that this one goes on from
    if base is not None and not told:
        told, begun = state.take_over(base), False
        kept = story.alike_until(told)
    kept = kept if isinstance(kept, int) else 0
    anew_from = kept if anew or base is not None else None  # a segment
    there, made_with = list(state.pieces()), _made_with(story, model)
    pairs = zip(there, about, strict=False)
    same = next((n for n, (piece, wanted) in enumerate(pairs) if piece.about != wanted), min(len(there), len(about)))
    segment = story.segment_at(same) if same < len(about) else len(story.lines)
    differences = _differences(told.get("made"), made_with)
    since = f"segment {segment + 1}" if same < len(about) else "the story's end"
    if same < len(there) and (anew_from is None or segment < anew_from):
        mend = "take another --output, or --overwrite to make it anew from there"
        if base is not None:
            mend = "a film goes on only as it was made: make this one as a story of its own"
        raise RequestError(
            f"{state.folder} holds a film of another story or other settings, from {since} on{differences}; {mend}"
        )
    if begun and same < min(len(there), len(about)):
        parts = "1 finished part is" if len(there) - same == 1 else f"{len(there) - same} finished parts are"
        why = ": what is remembered there is not as it was"
        if differences or story.lines_alike_until(told) <= segment:
            why = differences or ": the story is another one from there on"
        on_event(Event("load", note=f"{parts} made anew, from {since} on{why}"))
    state.drop_from(same)
    state.begin(story.told() | {"seed": story.request.seed, "made": made_with, "kept": kept})
    return there[:same]


def _abouts(story: StoryRequest, model: LoadedModel, added: list[int]) -> list[str]:
    """Of each piece, a digest of all that decides it: the settings, every line up to its own, and what it remembers."""
    parts = (model.fingerprint, model.loras, model.device.type, str(model.dtype), *_fingerprints(story))
    whole = hashlib.sha256(story.digest(repr(parts)).encode())
    found, before, reads = [], -1, story.unusual_reads()
    for piece, ((segment, _), frames) in enumerate(zip(story.pieces(), added, strict=True)):
        if segment != before:
            before, line = segment, story.lines[segment]
            own = [value for value in (line.seed, line.look) if value is not None]
            whole.update(repr((line.prompt, line.cut, *own)).encode())
        if piece in reads:
            whole.update(reads[piece].encode())
        whole.update(f"/{frames}".encode())
        found.append(whole.hexdigest()[:32])
    return found


def _fingerprints(story: StoryRequest) -> list[str]:
    """Of the files that a story names beside its model and adapters."""
    decoder = Path(story.request.decoder)
    return fingerprint_files(story.request) + ([fingerprint(decoder)] if decoder.is_file() else [])


def _made_with(story: StoryRequest, model: LoadedModel) -> dict[str, Any]:
    """What every piece depends on beside the lines, by the names that people know it by."""
    settings = story.request.model_dump(mode="json", exclude={"prompt", "device", "memory", "num_frames", "dtype"})
    memory = None if story.memory is None else story.memory.model_dump(mode="json")
    return settings | {
        "weights": model.fingerprint, "adapters": [dict(lora) for lora in model.loras], "remembers": memory,
        "files": _fingerprints(story), "device": model.device.type, "dtype": str(model.dtype).removeprefix("torch."),
        "way": story.way, "read_decay": story.read_decay, "rectify_every": story.rectify_every,
    }  # fmt: skip


def _differences(before: Any, now: dict[str, Any]) -> str:
    """What is not as it was, in words; nothing where that is not known."""
    if not isinstance(before, dict):
        return ""
    told = []
    for name in now:
        if before.get(name) != now[name]:
            short = all(isinstance(one.get(name), (str, int, float)) for one in (before, now)) and name != "weights"
            told.append(f"{name} was {str(before[name])[:60]} and is {str(now[name])[:60]}" if short else name)
    return f" ({'; '.join(told)}: not as it was)" if told else ""


def _notes(story: StoryRequest, model: LoadedModel) -> list[str]:
    notes = []
    if story.memory is None:
        notes.append(
            f"{model.spec.name} is made for single clips: the story is made window by window, each from the last "
            "frames of the one before; a figure that was away comes back as its words say"
        )
        nameless = [line for line in story.lines if line.name and line.look is None]
        if mends := next((line.name for line in nameless if line.returns or not model.spec.reads_names), None):
            notes.append(
                f'{mends} has no look: give it once, as in "{mends} (a small red star): ...", and each line from there '
                "on tells it"
            )
    return notes


def _check_room(folder: Path) -> None:
    if shutil.disk_usage(folder).free < 32 << 20:
        problem = OutputError(f"the disk of {folder} is full: what is finished plays, and the film goes on from there")
        problem.errno = errno.ENOSPC  # it passes
        raise problem


def _receipt(story: StoryRequest, model: LoadedModel, ends: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """How a film was made, with every prompt and its time; of one that was ended early, those that it has."""
    attention = {"kind": "causal" if story.memory is not None else story.request.attention_settings.kind}
    receipt = make_receipt(story.request, model, attention, {"film": round(seconds, 3)})
    begins = [0, *ends[:-1]]
    lines = [
        line.told() | {"begin": begin / story.fps, "end": end / story.fps}
        for line, begin, end in zip(story.lines, begins, ends, strict=False)
    ]
    return receipt | {"story": story.told() | {"lines": lines}}
