"""The ``radial`` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl+C."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

import radial
from radial.downloads import set_offline
from radial.errors import RadialError, RequestError
from radial_app import (
    accounts_cli,
    doctor,
    download_cli,
    estimate_cli,
    inspect_cli,
    jobs_cli,
    receipts_cli,
    render_cli,
    server,
    watch_cli,
)
from radial_app.options import (
    BlockSize,
    Codec,
    Crf,
    DataDir,
    Decay,
    DenseLastSteps,
    DenseLayers,
    DenseSteps,
    Format,
    Height,
    Metadata,
    ModelName,
    NumFrames,
    NumInferenceSteps,
    Overwrite,
    PrecisionChoice,
    Width,
)
from radial_app.terminal import printable
from radial_app.torchrun import is_follower, refuse_several

if TYPE_CHECKING:
    from radial.request import GenerationRequest
    from radial_app.jobs import Output

app = typer.Typer(
    name="radial",
    help="Generate video with radial attention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
stderr = Console(stderr=True)
_ALONE = ("render", "watch", "serve", "studio", "ui", "rerun", "inspect", "estimate", "download", "doctor")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. Errors are one line on stderr.

    Anywhere among the arguments, ``--debug`` shows the traceback and ``--offline`` forbids downloads.
    """
    # Where another program keeps the cores busy, threads that spin for long wait for each other without end.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for library in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao"):
        logging.getLogger(library).setLevel(logging.ERROR)  # what they say of each other's versions
    arguments = _with_dashes(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if "--offline" in arguments:
        set_offline()
    arguments = [a for a in arguments if a not in ("--debug", "--offline")]
    _add_commands(arguments)
    try:
        code = app(arguments, standalone_mode=False)
    except KeyboardInterrupt:
        _complain("stopped")
        sys.exit(130)
    except RadialError as error:
        if debug:
            traceback.print_exc()
        for message in getattr(error, "problems", [str(error)]):
            _complain(message)
        sys.exit(2 if isinstance(error, RequestError) else 1)
    except Exception as error:
        if isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "format_message"):
            _exit_as_typer_would(error)
        if debug:
            traceback.print_exc()
        _complain(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} (--debug shows more)")
        sys.exit(1)
    if code == 130:  # typer's own answer to Ctrl+C
        _complain("stopped")
    sys.exit(code if isinstance(code, int) else 0)


def _add_commands(arguments: list[str]) -> None:
    """Commands that other packages bring, such as fine-tuning; looked for only where none of ours is asked for."""
    ours = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    ours |= {group.name for group in app.registered_groups if group.name}
    if next((a for a in arguments if not a.startswith("-")), None) in ours:
        return
    known = {group.name for group in app.registered_groups}
    for entry in entry_points(group="radial.commands"):
        if entry.name not in known:
            app.add_typer(entry.load(), name=entry.name)


def _with_dashes(arguments: list[str]) -> list[str]:
    """Accept options with underscores, as diffusers names its parameters."""
    result: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[index:]]
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name.replace("_", "-") + equals + value
        result.append(argument)
    return result


def _exit_as_typer_would(error: Any) -> NoReturn:
    if isinstance(error, typer.Abort):
        _complain("stopped")
        sys.exit(130)
    if isinstance(error, typer.Exit):
        sys.exit(error.exit_code)
    if message := error.format_message():
        _complain(message)
    sys.exit(error.exit_code)


def _complain(message: str) -> None:
    stderr.print(f"[bold red]error:[/] {_escape(message)}", soft_wrap=True, highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(printable(" ".join(text.split())))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"radial {radial.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Generate video with radial attention."""
    if context.invoked_subcommand in _ALONE:
        refuse_several(f"radial {context.invoked_subcommand}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the clip shows.", metavar="PROMPT")],
    negative_prompt: Annotated[str | None, typer.Option(help="What the clip should not show.")] = None,
    model: ModelName = "tiny",
    height: Height = None,
    width: Width = None,
    num_frames: NumFrames = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second of the file.")] = None,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to follow the prompt.")] = None,
    guidance_scale_2: Annotated[float | None, typer.Option(help="The same for the second transformer.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings that go together, such as 4-step.")] = None,
    sampler: Annotated[Literal["model", "euler", "unipc"], typer.Option(help="Another sampler.")] = "model",
    flow_shift: Annotated[float | None, typer.Option(help="Another shift of the noise schedule.")] = None,
    image: Annotated[str | None, typer.Option(help="Image the clip starts from.", metavar="FILE")] = None,
    last_image: Annotated[str | None, typer.Option(help="Image it ends on.", metavar="FILE")] = None,
    extend: Annotated[str | None, typer.Option(help="Clip to go on from its last frame.", metavar="FILE")] = None,
    image_fit: Annotated[
        Literal["crop", "pad", "stretch"], typer.Option(help="How images of another shape are fitted.")
    ] = "crop",
    snap: Annotated[bool, typer.Option("--snap", help="Take the nearest size that the model can make.")] = False,
    riflex: Annotated[
        bool | None, typer.Option(help="Slow one temporal frequency, against repetition in longer clips.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clip; -1 draws one and records it.")] = -1,
    num_videos: Annotated[int, typer.Option(help="How many clips, their seeds counting up.")] = 1,
    attention: Annotated[
        Literal["radial", "dense"] | None, typer.Option(help="Which self-attention to use; radial by default.")
    ] = None,
    decay: Decay = None,
    dense_layers: DenseLayers = None,
    dense_steps: DenseSteps = None,
    dense_last_steps: DenseLastSteps = None,
    block_size: BlockSize = None,
    lora: Annotated[list[str] | None, typer.Option(help="Adapter, repeatable.", metavar="FILE[:WEIGHT]")] = None,
    long_adapter: Annotated[
        bool, typer.Option(help="Beyond the native length, use the model's own adapter for that, where there is one.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    precision: PrecisionChoice = "full",
    memory: Annotated[
        Literal["auto", "full", "balanced", "low", "lowest"],
        typer.Option(help="How much of the model lies on the GPU at a time; auto takes the most that fits."),
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option(help="File to write, .mp4, .webm or .gif; by default one under outputs/.")
    ] = None,
    overwrite: Overwrite = False,
    video_format: Format = None,
    codec: Codec = None,
    crf: Crf = None,
    metadata: Metadata = True,
    queue: Annotated[
        bool, typer.Option("--queue", help="Only put it into the queue, for `radial work` or `radial serve` to render.")
    ] = False,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a video instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the path.")] = False,
) -> None:
    """Generate a video from a prompt."""
    from radial.models import find_preset
    from radial.request import make_request, parse_lora
    from radial_app.crew import follow, leading
    from radial_app.jobs import Job, anchored
    from radial_app.rendering import render_here
    from radial_app.store import JobStore

    if is_follower():
        if not queue:
            follow(device)
        return
    if quiet or as_json:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

    chosen = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "guidance_scale_2": guidance_scale_2,
        "sampler": None if sampler == "model" else sampler,
        "flow_shift": flow_shift,
    }
    written = dict(
        prompt=prompt,
        negative_prompt=negative_prompt,
        model=model,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=fps,
        # What is given by name goes before the preset.
        **(find_preset(preset) | {name: value for name, value in chosen.items() if value is not None}),
        image=image,
        last_image=last_image,
        extend=extend,
        image_fit=image_fit,
        snap=snap,
        riflex=riflex,
        seed=seed,
        num_videos=num_videos,
        attention=attention,
        decay=decay,
        dense_layers=dense_layers,
        dense_steps=dense_steps,
        dense_last_steps=dense_last_steps,
        block_size=block_size,
        loras=[parse_lora(text) for text in lora or []],
        long_adapter=long_adapter,
        device=device,
        dtype=dtype,
        precision=precision,
        memory=memory,
    )
    try:
        request = anchored(make_request(**written)).resolve()
        place = _output(output, video_format, codec, crf, metadata, overwrite, request)
    except RequestError as error:
        raise RequestError(_beside_flags(str(error), [*written, "format", "codec", "crf"])) from error
    job = Job(id="", request=request, output=place)
    with JobStore(data_dir) as store:
        if queue:
            (job,) = store.add([job])
            print(job.id)
            return
        with leading(device) as crew:
            render_here(store, job, crew=crew, quiet=quiet, as_json=as_json)


def _beside_flags(message: str, names: list[str]) -> str:
    """A complaint about fields as one about options."""
    parts = message.split("; ")
    for index, part in enumerate(parts):
        name, space, rest = part.partition(" ")
        if name in names and name != "prompt":
            parts[index] = f"--{name.replace('_', '-')}{space}{rest}"
    return "; ".join(parts)


def _output(
    path: Path | None, video_format: Any, codec: Any, crf: int | None, metadata: bool, overwrite: bool,
    request: GenerationRequest,
) -> Output:  # fmt: skip
    """Where the videos of one command go, checked before work is spent."""
    from radial.encoding import encoding_for
    from radial.files import check_output
    from radial_app.jobs import DEFAULT_NAME, Job, make_output
    from radial_app.outputs import OUTPUT_FOLDER

    if path is not None and video_format is None:
        video_format = encoding_for(path).format
    encoding = {"format": video_format or "mp4", "codec": codec, "crf": crf, "metadata": metadata}
    if path is None:
        output = make_output(
            folder=str(OUTPUT_FOLDER.absolute()), name=DEFAULT_NAME, encoding=encoding, overwrite=overwrite
        )
    else:
        stem = path.name if video_format == "png" else path.stem
        name = stem.replace("{", "{{").replace("}", "}}") + ("" if request.num_videos == 1 else "-{video}")
        output = make_output(folder=str(path.parent.absolute()), name=name, encoding=encoding, overwrite=overwrite)
        if output.encoding.suffix and path.suffix.lower() != output.encoding.suffix:
            raise RequestError(f"output must end in {output.encoding.suffix}, not {path.name!r}")
    for index in range(request.num_videos):
        example = Job(id="", request=request, output=output)
        wanted = output.path(example.name_values(request.singles()[index], index))
        check_output(wanted, output.encoding.suffix, overwrite=overwrite or path is None)
    return output


app.add_typer(jobs_cli.app)
app.add_typer(accounts_cli.app)
for command in (
    render_cli.render, watch_cli.watch, jobs_cli.work, receipts_cli.receipt, receipts_cli.rerun, receipts_cli.verify,
    server.serve, server.studio, doctor.doctor,
):  # fmt: skip
    app.command()(command)
app.command("ui", hidden=True)(server.studio)
app.command()(download_cli.download)
app.command()(estimate_cli.estimate)
app.command()(inspect_cli.inspect)
app.command()(inspect_cli.models)
