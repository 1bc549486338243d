"""``radial control``: the signal of a clip that steers another one, without downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from radial.errors import RequestError
from radial_app.cli.terminal.options import Overwrite


def control(
    signal: Annotated[
        Literal["canny", "grey", "flow"],
        typer.Argument(help="canny, its edges; grey, its grey levels; flow, where things go to."),
    ],
    clip: Annotated[Path, typer.Argument(help="The clip whose signal it is.", metavar="CLIP")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .mp4, .webm or .gif.")],
    low: Annotated[int, typer.Option(min=0, max=2000, help="canny: an edge goes on down to this gradient.")] = 100,
    high: Annotated[int, typer.Option(min=0, max=2000, help="canny: an edge begins at this one.")] = 200,
    overwrite: Overwrite = False,
) -> None:
    """Make the control signal of a clip, for --control-video.

    Example: radial control canny dance.mp4 -o edges.mp4
    """
    from radial.files import check_output, publish
    from radial.video.control import signals_of
    from radial.video.encoding import encode, encoding_for
    from radial.video.finishing.sources import Sources

    if low > high:
        raise RequestError(f"--low must be at most --high, not {low} above {high}")
    encoding = encoding_for(output)
    if output.exists() and clip.exists() and output.samefile(clip):
        raise RequestError(f"{output} is the clip itself: give another --output")
    check_output(output, encoding.suffix, overwrite=overwrite)
    source = Sources.look([clip])
    signals = signals_of((frame() for frame in source.frames()), signal, low, high)
    publish(output, lambda partial: encode(signals, source.rate, {}, partial, encoding), overwrite=overwrite)
    print(output)
