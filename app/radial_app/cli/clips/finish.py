"""``radial finish``: a clip with more frames, more pixels, another time, shape or sound, beside the clip itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from radial.errors import RequestError
from radial.video.encoding import Encoding
from radial_app.cli.terminal.options import Codec, Crf, DataDir, Metadata, Overwrite, in_groups, told_as_options

if TYPE_CHECKING:
    from radial.video.finishing.steps import Finish

stderr = Console(stderr=True)
_GROUPS = {
    "Time": ("start", "end", "reverse", "speed", "frames", "fps", "loop"),
    "Picture": ("aspect", "reframe", "scale", "size", "upscaler", "device"),
    "Sound": ("sound",),
    "Queue": ("queue", "data_dir"),
}


@in_groups(_GROUPS)
def finish(
    clips: Annotated[list[Path], typer.Argument(help="The clip; several are joined first.", metavar="CLIP...")],
    start: Annotated[float, typer.Option(help="Only what is shown from this second.")] = 0.0,
    end: Annotated[float | None, typer.Option(help="Only what is shown before this second.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="From its end to its beginning.")] = False,
    speed: Annotated[float, typer.Option(help="Faster or slower; 0.5 with --frames 2 is smooth slow motion.")] = 1.0,
    frames: Annotated[
        int, typer.Option(help="So many times as many frames, 2 or 4, by what moves where.", metavar="1|2|4")
    ] = 1,
    fps: Annotated[int | None, typer.Option(help="Frames a second of the file.")] = None,
    loop: Annotated[int, typer.Option(help="How many times it is shown.")] = 1,
    aspect: Annotated[str | None, typer.Option(help="Another shape, such as 9:16.", metavar="WIDTH:HEIGHT")] = None,
    reframe: Annotated[
        Literal["crop", "pad"], typer.Option(help="How another shape is had: cut off, or padded with black.")
    ] = "crop",
    scale: Annotated[float | None, typer.Option(help="So many times as wide and high.")] = None,
    size: Annotated[str | None, typer.Option(help="Or this size.", metavar="WIDTHxHEIGHT")] = None,
    upscaler: Annotated[
        str | None,
        typer.Option(
            help="A model's file that makes the pixels, of ESRGAN's kind, or a folder with LTX's upsampler of latents "
            "and its autoencoder; else Lanczos.",
            metavar="FILE",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where an upscaler computes: auto, cpu or cuda:N.")] = "auto",
    sound: Annotated[
        str, typer.Option(help="keep it, none, or the file whose sound comes in its place.", metavar="keep|none|FILE")
    ] = "keep",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, .mp4, .webm or .gif; beside the clip if open.")
    ] = None,
    overwrite: Overwrite = False,
    codec: Codec = None,
    crf: Crf = None,
    metadata: Metadata = True,
    queue: Annotated[
        bool,
        typer.Option("--queue", help="Only put it into the queue: `radial work` or `radial serve` goes on with it."),
    ] = False,
    data_dir: DataDir = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the path.")] = False,
) -> None:
    """Finish a clip: more frames, more pixels, another time, shape or sound. The clip stays as it is.

    Example: radial finish fox.mp4 --frames 2 --scale 2 --sound wind.wav
    """
    from rich.progress import Progress

    from radial.loading.devices import find_device
    from radial.video.encoding import encoding_for
    from radial.video.finishing.finish import finish as write
    from radial.video.finishing.steps import make_finish
    from radial_app.jobs.job import make_output
    from radial_app.jobs.results import free_name

    fields = {
        "start": start, "end": end, "reverse": reverse, "aspect": aspect, "reframe": reframe, "scale": scale,
        "size": size, "upscaler": upscaler, "frames": frames, "speed": speed, "fps": fps, "loop": loop, "sound": sound,
    }  # fmt: skip
    with told_as_options([*fields, "codec", "crf"]):
        what = make_finish(**fields)
        if output is None:
            if len(clips) == 1 and what == make_finish():
                raise RequestError("nothing is to be done: say what, such as --frames 2")
            output = free_name(clips[0].with_name(f"{clips[0].stem}-finished.mp4"))
        chosen = {"format": encoding_for(output).format, "codec": codec, "crf": crf, "metadata": metadata}
        encoding: Encoding = make_output(encoding=chosen).encoding
        if queue:
            print(_queue(clips, output, what, encoding, device, data_dir, overwrite=overwrite))
            return
        chosen_device = find_device(device) if upscaler else "cpu"
        with Progress(console=stderr, transient=True, disable=quiet) as progress:
            task = progress.add_task("frames", total=None)

            def tell(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            notes = write(
                clips, output, what, encoding=encoding, overwrite=overwrite, device=chosen_device, on_frame=tell
            )  # fmt: skip
    for note in () if quiet else notes:
        stderr.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    print(output)


def _queue(
    clips: list[Path], output: Path, what: Finish, encoding: Encoding, device: str, data_dir: Path | None, *,
    overwrite: bool,
) -> str:  # fmt: skip
    """Put it into the queue: the job's id."""
    from radial.files import check_output
    from radial_app.jobs.finishing import check_finished_output, finishing_of, request_of
    from radial_app.jobs.job import Job, make_output
    from radial_app.jobs.store import JobStore

    check_finished_output(encoding, beside=True)
    if any(output.exists() and output.samefile(clip) for clip in clips if clip.exists()):
        raise RequestError(f"{output} is the clip itself, which is kept as it is: give another output")
    check_output(output, encoding.suffix, overwrite=overwrite)
    name = output.stem.replace("{", "{{").replace("}", "}}")
    kept = {"folder": str(output.absolute().parent), "name": name, "encoding": encoding.model_dump()}
    job = Job(
        id="", request=request_of(clips, device), finish=finishing_of(clips, what),
        output=make_output(**kept, overwrite=overwrite),
    )  # fmt: skip
    with JobStore(data_dir) as store:
        return store.add([job])[0].id
