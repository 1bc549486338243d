"""``radial story``: many prompts, one film."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from radial.errors import RequestError
from radial.files import check_output
from radial.loading.memory_check import check_fits
from radial.models.lora_settings import parse_lora
from radial.shorthands import spell_out
from radial.stories.request import StoryRequest, make_story_request, read_told
from radial.stories.script import Line, looks_in, read_story, read_story_file
from radial.stories.state import FilmState, state_folder
from radial.video.clip import read_receipt
from radial_app.cli.terminal.options import (
    DataDir,
    Force,
    Height,
    ModelName,
    NumInferenceSteps,
    Overwrite,
    PrecisionChoice,
    Size,
    Width,
    in_groups,
    left_open,
    told_as_options,
)
from radial_app.cli.terminal.text import json_text
from radial_app.jobs.job import Job, anchored, make_output
from radial_app.jobs.store import JobStore

if TYPE_CHECKING:
    from radial.stories.film import Made

_OF_ANY_FILM = {"file", "output", "continue_film", "overwrite", "as_json", "quiet", "force", "queue", "data_dir"}
_GROUPS = {
    "Film": ("seconds", "height", "width", "size", "fps", "seed", "image", "continue_film"),
    "Sampling": ("num_inference_steps", "guidance_scale", "negative_prompt", "flow_shift"),
    "Memory": ("kind", "window_frames", "chunk_frames", "memory_frames", "memory_thinning", "memory_positions",
               "causal", "read_decay", "rectify_every"),
    "Machine": ("device", "dtype", "precision", "memory", "force", "queue", "data_dir"),
}  # fmt: skip


@in_groups(_GROUPS)
def story(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="A prompt a line, or YAML; - reads it from stdin.", metavar="FILE|-")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, .mp4.")] = None,
    continue_film: Annotated[
        Path | None,
        typer.Option("--continue", help="Go on with this film, by its receipt, with the lines given.", metavar="FILM"),
    ] = None,
    model: ModelName = "tiny",
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapter, repeatable; one that was tuned for stories makes them in chunks.", metavar="FILE[:WEIGHT]"
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=600, help="Of a line that does not say; a native clip's by default.")
    ] = None,
    height: Height = None,
    width: Width = None,
    size: Size = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second of the film.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same film; -1 draws one.")] = -1,
    image: Annotated[Path | None, typer.Option(help="An image to start from, for models that need one.")] = None,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to follow the prompts.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Words to avoid; the model's own by default.")] = None,
    flow_shift: Annotated[float | None, typer.Option(help="Another shift of the noise schedule.")] = None,
    kind: Annotated[
        Literal["none", "last_frame", "mean_pool", "radial", "learned"] | None,
        typer.Option("--remember", help="What an earlier segment leaves; as the adapter was tuned by default."),
    ] = None,
    window_frames: Annotated[int | None, typer.Option(help="Latent frames before a chunk that it sees whole.")] = None,
    chunk_frames: Annotated[int | None, typer.Option(help="Latent frames that are made at a time.")] = None,
    memory_frames: Annotated[int | None, typer.Option(help="Latent frames that a radial memory keeps at most.")] = None,
    memory_thinning: Annotated[int | None, typer.Option(help="One token in so many is left of a last frame.")] = None,
    memory_positions: Annotated[int | None, typer.Option(help="Distances that memory can have.")] = None,
    causal: Annotated[
        bool, typer.Option("--causal", help="The model makes stories in chunks by itself, without an adapter.")
    ] = False,
    read_decay: Annotated[
        float | None, typer.Option(help="Read the cache by the radial rule of this decay, not whole.")
    ] = None,
    rectify_every: Annotated[
        int, typer.Option(help="With --read-decay, write the cache by whole reads every so many chunks; 0: never.")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, or cuda:N.")] = "auto",
    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"], typer.Option(help="Of the weights.")] = "auto",
    precision: PrecisionChoice = "full",
    memory: Annotated[
        Literal["auto", "full", "balanced", "low", "lowest"], typer.Option(help="How the model is laid out over a GPU.")
    ] = "auto",
    force: Force = False,
    queue: Annotated[
        bool, typer.Option("--queue", help="Only put it into the queue, for `radial work` or `radial serve` to render.")
    ] = False,
    data_dir: DataDir = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a chunk instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the path.")] = False,
) -> None:
    """Make a film of many prompts, one a line; stopped in whatever way, the same command goes on with it.

    Example: radial story lines.txt --model tiny --output film.mp4
    """
    folder, anew = None, overwrite
    if continue_film is not None:
        if given := _given(context) - _OF_ANY_FILM:
            raise RequestError(f"a film goes on as it was made: leave out --{min(given).replace('_', '-')}")
        before, folder = _made_before(continue_film, data_dir)
        lines = _read(file, looks_in(before.lines))
        wanted = before.with_lines((*before.lines, *lines))
        overwrite = overwrite or output is None or output.absolute() == continue_film.absolute()
        output = output or continue_film
    else:
        if output is None:
            raise RequestError("give --output, such as film.mp4")
        chosen = {
            "kind": kind, "window_frames": window_frames, "chunk_frames": chunk_frames, "memory_frames": memory_frames,
            "memory_thinning": memory_thinning, "memory_positions": memory_positions,
        }  # fmt: skip
        fields: dict[str, Any] = {
            "model": model, "height": height, "width": width, "size": size, "fps": fps,
            "seed": _seed_before(output) if seed == -1 and not overwrite else seed,
            "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt, "flow_shift": flow_shift,
            "image": None if image is None else str(image.absolute()),
            "loras": [parse_lora(text) for text in lora or []], "device": device, "dtype": dtype,
            "precision": precision, "memory": memory,
        }  # fmt: skip
        with told_as_options([*fields, "read_decay", "rectify_every"]):
            wanted = make_story_request(
                _read(file, None), spell_out(fields), seconds=seconds, causal=causal, read_decay=read_decay,
                memory={name: value for name, value in chosen.items() if value is not None},
                rectify_every=rectify_every,
            )  # fmt: skip
        wanted = replace(wanted, request=anchored(wanted.request))
    check_output(output, ".mp4", overwrite=overwrite)
    wanted.request.check_files()
    if not force:
        check_fits(wanted.request)
    if queue:
        _queue(wanted, output, folder, data_dir, overwrite=overwrite)
        return
    base = None
    if continue_film is not None and folder is not None and folder != state_folder(continue_film):  # out of the queue
        base, folder = FilmState(folder), None
    _make(wanted, output, folder, base, overwrite=overwrite, anew=anew, as_json=as_json, quiet=quiet)


def _made_before(film: Path, data_dir: Path | None) -> tuple[StoryRequest, Path]:
    """The story of a film, and the folder that the film goes on from: beside it, or that of its job.

    Raises:
        RequestError: it is no film of a story, or the folder is gone.
    """
    before, folder = read_told(read_receipt(film)), state_folder(film)
    if folder.is_dir():
        return before, folder
    with JobStore(data_dir) as store:
        found = store.job_of_file(str(film.absolute()))
        job = None if found is None else store.find_one(found[0])
        if job is not None and job.story is not None and store.film_folder(job.id).is_dir():
            return job.story, store.film_folder(job.id)
    raise RequestError(
        f"{folder} is not there any more, and a film goes on from what it holds; `radial story` makes the film "
        "again, with lines that follow its own"
    )


def _queue(wanted: StoryRequest, output: Path, folder: Path | None, data_dir: Path | None, *, overwrite: bool) -> None:
    wanted = replace(wanted, request=anchored(wanted.request))
    name = output.stem.replace("{", "{{").replace("}", "}}")
    job = Job(
        id="", request=wanted.request, story=wanted, base="" if folder is None else str(folder.absolute()),
        output=make_output(folder=str(output.absolute().parent), name=name, overwrite=overwrite),
    )  # fmt: skip
    with JobStore(data_dir) as store:
        print(store.add([job])[0].id)


def _make(
    wanted: StoryRequest, output: Path, folder: Path | None, base: FilmState | None, *, overwrite: bool, anew: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    from radial.stories.film import make_film  # brings torch, which takes seconds

    stderr = Console(stderr=True)

    def on_event(event: Any) -> None:
        if event.note and not quiet:
            stderr.print(event.note, markup=False, highlight=False, soft_wrap=True)

    def on_made(made: Made) -> None:
        if as_json:
            told = {"piece": made.piece, "pieces": made.pieces, "segment": made.segment, "seconds": made.seconds,
                    "film": str(made.film), "taken_up": made.taken_up}  # fmt: skip
            print(json_text(told), flush=True)
        elif not quiet and not made.taken_up:
            stderr.print(
                f"segment {made.segment + 1} of {made.segments}: {made.seconds:.1f} s play in {made.film}",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip

    path = make_film(
        wanted, output, overwrite=overwrite, anew=anew, folder=folder, base=base, on_event=on_event, on_made=on_made
    )  # fmt: skip
    print(json_text({"path": str(path)}) if as_json else path)


def _read(file: str, known: dict[str, str | None] | None) -> tuple[Line, ...]:
    return read_story(sys.stdin.read(), known) if file == "-" else read_story_file(Path(file), known)


def _seed_before(output: Path) -> int:
    """The seed of a film that was begun, where none is asked for; -1 where there is no such film."""
    seed = FilmState(state_folder(output)).told().get("seed")
    return seed if isinstance(seed, int) else -1


def _given(context: typer.Context) -> set[str]:
    return set(context.params) - left_open(context)
