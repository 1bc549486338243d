"""Options that commands of several files share."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.models import OptionInfo

from radial.errors import RequestError
from radial.field_words import sentence
from radial.models.table import PRESETS

Format = Annotated[
    Literal["mp4", "webm", "gif", "png"] | None,
    typer.Option("--format", help=sentence("format")),
]
Codec = Annotated[Literal["h264", "h265", "av1", "vp9"] | None, typer.Option(help=sentence("codec"))]
Crf = Annotated[int | None, typer.Option(help=sentence("crf"))]
Metadata = Annotated[bool, typer.Option("--metadata/--no-metadata", help=sentence("metadata"))]
Device = Annotated[list[str] | None, typer.Option(help="cpu or cuda:N, repeatable; all of the machine by default.")]
PerDevice = Annotated[int, typer.Option(min=1, max=16, help="Workers on each device.")]
Pack = Annotated[bool, typer.Option("--pack/--no-pack", help="Render jobs together where that was measured to pay.")]
SnapshotSeconds = Annotated[float, typer.Option(min=0, help="Between two snapshots of a run.")]
PrecisionChoice = Annotated[
    Literal["full", "eight_bit", "eight_bit_weights"],
    typer.Option(help=sentence("precision")),
]
ModelName = Annotated[
    str,
    typer.Option(help="A name from `radial models`, a hub id, a checkpoint folder, or the file of a transformer."),
]
Height = Annotated[int | None, typer.Option(help=sentence("height"))]
Width = Annotated[int | None, typer.Option(help=sentence("width"))]
Size = Annotated[str | None, typer.Option(help=sentence("size"), metavar="WIDTHxHEIGHT")]
Seconds = Annotated[float | None, typer.Option(help=sentence("seconds"))]
Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Settings that go together: {', '.join(PRESETS)}, or your own (`radial presets`).", metavar="NAME"
    ),
]
NumFrames = Annotated[int | None, typer.Option(help=sentence("num_frames"))]
NumInferenceSteps = Annotated[int | None, typer.Option(help=sentence("num_inference_steps"))]
Cache = Annotated[
    Literal["off", "auto", "fast"],
    typer.Option(help=sentence("cache")),
]
BatchedGuidance = Annotated[bool, typer.Option(help=sentence("batched_guidance"))]
Decoder = Annotated[str, typer.Option(help=sentence("decoder", ", or such a decoder's file"), metavar="WHICH")]
GuidanceStart = Annotated[float, typer.Option(help=sentence("guidance_start"))]
GuidanceEnd = Annotated[float, typer.Option(help=sentence("guidance_end"))]
Force = Annotated[
    bool, typer.Option("--force", help="Also what this machine has not the memory for; RADIAL_FORCE=1 does the same.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the queue; else RADIAL_DATA_DIR, or the platform's.", metavar="FOLDER")
]
# What a user may set of how attention is computed, by the names of a request.
ATTENTION: dict[str, Any] = {
    "attention": Literal["radial", "adaptive", "dense"],
    "density": float,
    "decay": float,
    "sink_frames": int,
    "variant": Literal["published", "paper"],
    "skip_width": int,
    "dense_layers": int,
    "dense_steps": int,
    "dense_last_steps": int,
    "dense_every": int,
    "dense_above": float,
    "early_density": float,
    "policy": str,
    "target_share": float,
    "target_speed": float,
    "block_size": int,
    "far_field": Literal["drop", "mean", "pyramid"],
    "token_order": Literal["raster", "columns"],
}


@contextlib.contextmanager
def told_as_options(names: Iterable[str]) -> Iterator[None]:
    """Have complaints about fields of a request name the options that a user typed.

    Args:
        names: fields that are options of the command.
    """
    known = set(names) - {"prompt"}
    try:
        yield
    except RequestError as error:
        parts = []
        for part in str(error).split("; "):
            name, space, rest = part.partition(" ")
            parts.append(f"--{name.replace('_', '-')}{space}{rest}" if name in known else part)
        raise RequestError("; ".join(parts)) from error


def left_open(context: typer.Context) -> set[str]:
    """The options of a running command that nobody has given."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "DEFAULT"}


def in_groups(groups: dict[str, tuple[str, ...]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a command's help show its options in groups, by their names; what is in none stands under "File"."""
    group_of = {name: group for group, names in groups.items() for name in names}

    def group(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = []
        for one in signature.parameters.values():
            kind, *told = get_args(one.annotation) if get_origin(one.annotation) is Annotated else (one.annotation,)
            if told and isinstance(told[0], OptionInfo):
                option = copy.copy(told[0])
                option.rich_help_panel = group_of.get(one.name, "File")
                one = one.replace(annotation=Annotated[kind, option])
            parameters.append(one)
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return group


def takes_attention(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of attention, in place of its ``**`` parameter."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        command(*args, **options)

    plain = inspect.signature(command, eval_str=True)
    own = [one for one in plain.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None,
            annotation=Annotated[kind | None, typer.Option(help=sentence(name))],
        )
        for name, kind in ATTENTION.items()
    ]  # fmt: skip
    signature = plain.replace(parameters=[*own, *added])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
    del run.__wrapped__  # or what it wraps would be read
    return run
