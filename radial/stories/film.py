"""From a story to its film: piece by piece, each in the film before the next is begun, and on where it was stopped."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from radial.errors import GenerationError, OutputError, RequestError
from radial.files import check_output
from radial.generation.receipt import make_receipt
from radial.generation.watch import Event, OnEvent
from radial.loading.load import LoadedModel, fingerprint, fingerprint_files, load, quiet
from radial.stories.chunks import Chunks
from radial.stories.request import StoryRequest
from radial.stories.state import FilmState, Piece, state_folder
from radial.stories.windows import Windows
from radial.video.encoding import Frames
from radial.video.film import GrowingFilm, finish_film


@dataclass(frozen=True)
class Made:
    """A piece that was finished: its number, of how many; its segment, of how many; the film so far, its seconds, and
    whether it was there before."""

    piece: int
    pieces: int
    segment: int
    segments: int
    film: Path
    seconds: float
    taken_up: bool


class Maker(Protocol):
    """Makes the pieces of a film in order."""

    @property
    def count(self) -> int: ...

    def segment_of(self, piece: int) -> int: ...

    def frames_of(self, piece: int) -> int: ...

    def make(self, piece: int, on_step: Callable[[int], None]) -> tuple[Frames, dict[str, Tensor]]: ...

    def restore(self, piece: int, tensors: dict[str, Tensor], until: int) -> None: ...

    def close(self) -> None: ...


def make_film(
    story: StoryRequest, output: Path, *, model: LoadedModel | None = None, overwrite: bool = False,
    anew: bool = False, folder: Path | None = None, on_event: OnEvent = lambda event: None,
    on_made: Callable[[Made], None] = lambda made: None,
) -> Path:  # fmt: skip
    """Make a story's film, or go on with one that was stopped, or whose story has grown.

    Args:
        output: the file, an MP4.
        model: a model loaded before.
        overwrite: replace the file.
        anew: make anew what was made of another story, or in another way.
        folder: of the film in the making; beside ``output`` when left out.
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
        for note in (*model.notes, *_notes(story)):
            on_event(Event("load", note=note))
        started = time.monotonic()
        maker: Maker = Windows(story, model, state.folder) if story.memory is None else Chunks(story, model)
        try:
            with quiet():
                ends = _render(story, model, maker, state, on_event, on_made, anew=anew)
        finally:
            maker.close()
        finish_film(state.film, output, _receipt(story, model, ends, time.monotonic() - started), overwrite=overwrite)
    return output


def _render(
    story: StoryRequest, model: LoadedModel, maker: Maker, state: FilmState, on_event: OnEvent,
    on_made: Callable[[Made], None], *, anew: bool,
) -> list[int]:  # fmt: skip
    """Make what is not there yet: the frames of the film at the end of each segment."""
    about = _abouts(story, model, maker)
    there = list(state.pieces())
    pairs = zip(there, about, strict=False)
    same = next((n for n, (piece, wanted) in enumerate(pairs) if piece.about != wanted), min(len(there), len(about)))
    made_with = _made_with(story, model)
    if same < len(there) and not anew:
        differences = _differences(state.told().get("made"), made_with)
        since = f"segment {maker.segment_of(same) + 1}" if same < len(about) else "the story's end"
        raise RequestError(
            f"{state.folder} holds a film of another story or other settings, from {since} on{differences}; take "
            "another --output, or --overwrite to make it anew from there"
        )
    state.drop_from(same)
    there = there[:same]
    state.begin(story.told() | {"seed": story.request.seed, "made": made_with})
    ends = [0] * len(story.lines)
    frames = 0

    def tell(piece: int, *, taken_up: bool) -> None:
        nonlocal frames
        segment = maker.segment_of(piece)
        frames += maker.frames_of(piece)
        ends[segment] = frames
        on_made(Made(piece, maker.count, segment, len(ends), state.film, frames / story.fps, taken_up))

    last = there[-1] if there else Piece("", {})
    film = GrowingFilm(state.film, story.fps, size=last.size, frames=last.frames)
    try:
        for number, piece in enumerate(there):
            maker.restore(number, piece.tensors, len(there))
            tell(number, taken_up=True)
        steps = story.request.num_inference_steps or 1
        for number in range(len(there), maker.count):
            _check_room(state.folder)

            def on_step(step: int, number: int = number) -> None:
                on_event(Event("denoise", step + 1, steps, number))

            made, tensors = maker.make(number, on_step)
            if len(made) != maker.frames_of(number):
                raise GenerationError(f"piece {number + 1} has {len(made)} frames, not {maker.frames_of(number)}")
            size = film.append(made)
            state.add(number, Piece(about[number], tensors, size, film.frames))
            tell(number, taken_up=False)
    finally:
        film.close()
    return ends


def _abouts(story: StoryRequest, model: LoadedModel, maker: Maker) -> list[str]:
    """Of each piece, a digest of all that decides it: the settings, and every line up to its own."""
    parts = (model.fingerprint, model.loras, model.device.type, str(model.dtype), *_fingerprints(story))
    whole = hashlib.sha256(story.digest(repr(parts)).encode())
    found, segment = [], -1
    for piece in range(maker.count):
        if maker.segment_of(piece) != segment:
            segment = maker.segment_of(piece)
            line = story.lines[segment]
            whole.update(repr((line.prompt, line.cut)).encode())
        whole.update(f"/{maker.frames_of(piece)}".encode())
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


def _notes(story: StoryRequest) -> list[str]:
    notes = []
    if story.memory is None:
        notes.append(
            f"{story.spec.name} is made for single clips: the story is made window by window, each from the last "
            "frames of the one before; a figure that was away does not look as it did"
        )
    return notes


def _check_room(folder: Path) -> None:
    if shutil.disk_usage(folder).free < 32 << 20:
        raise OutputError(f"the disk of {folder} is full: what is finished plays, and the film goes on from there")


def _receipt(story: StoryRequest, model: LoadedModel, ends: list[int], seconds: float) -> dict[str, Any]:
    """How a film was made, with every prompt and its time."""
    attention = {"kind": "causal" if story.memory is not None else story.request.attention_settings.kind}
    receipt = make_receipt(story.request, model, attention, {"film": round(seconds, 3)})
    begins = [0, *ends[:-1]]
    lines = [
        asdict(line) | {"begin": begin / story.fps, "end": end / story.fps}
        for line, begin, end in zip(story.lines, begins, ends, strict=True)
    ]
    return receipt | {"story": story.told() | {"lines": lines}}
