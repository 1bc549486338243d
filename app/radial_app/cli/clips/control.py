"""``radial control``: the signal of a clip that steers another one, and masks of clips, without downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from radial.errors import RequestError
from radial_app.cli.terminal.options import Overwrite


def control(
    signal: Annotated[
        Literal["canny", "grey", "flow", "mask"],
        typer.Argument(
            help="canny, its edges; grey, its grey levels; flow, where things go to; mask, --drawn followed through it."
        ),
    ],
    clip: Annotated[Path, typer.Argument(help="The clip whose signal it is.", metavar="CLIP")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .mp4, .webm or .gif.")],
    low: Annotated[int, typer.Option(min=0, max=2000, help="canny: an edge goes on down to this gradient.")] = 100,
    high: Annotated[int, typer.Option(min=0, max=2000, help="canny: an edge begins at this one.")] = 200,
    drawn: Annotated[
        Path | None, typer.Option(help="mask: an image, white where it lies over a frame of the clip.", metavar="IMAGE")
    ] = None,
    at: Annotated[float, typer.Option(min=0, help="mask: the second of that frame.")] = 0.0,
    grow: Annotated[int, typer.Option(min=0, max=200, help="mask: pixels that it is widened by.")] = 4,
    edges: Annotated[
        bool, typer.Option(help="mask: its edge goes where colours part; else flow alone decides.")
    ] = True,
    preview: Annotated[
        Path | None, typer.Option(help="mask: a file for the clip, red where the mask is white.", metavar="FILE")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make the control signal of a clip, for --control-video, or a mask that follows what it is drawn on, for --mask.

    Example: radial control canny dance.mp4 -o edges.mp4

    Example: radial control mask street.mp4 --drawn car.png --at 1.5 -o car.mp4 --preview look.mp4
    """
    from radial.files import check_output, publish
    from radial.video.control import signals_of
    from radial.video.encoding import encode, encoding_for
    from radial.video.finishing.sources import Sources
    from radial.video.masks.tracked import track_drawing

    if (signal == "mask") != (drawn is not None):
        raise RequestError("--drawn is the image that a mask is: give both, or neither")
    if low > high:
        raise RequestError(f"--low must be at most --high, not {low} above {high}")
    outputs = [output, *([preview] if preview is not None and drawn is not None else [])]
    for one in outputs:
        if one.exists() and clip.exists() and one.samefile(clip):
            raise RequestError(f"{one} is the clip itself: give another --output")
        check_output(one, encoding_for(one).suffix, overwrite=overwrite)
    encoding = encoding_for(output)
    source = Sources.look([clip])
    if drawn is not None:
        tracked = track_drawing(
            (frame() for frame in source.frames()), drawn, int(at * source.rate + 1e-6), grow=grow, edges=edges
        )
        for one, frames in zip(outputs, (tracked.frames(), tracked.over(f() for f in source.frames())), strict=False):
            kind = encoding_for(one)
            publish(one, lambda partial: encode(frames, source.rate, {}, partial, kind), overwrite=overwrite)  # noqa: B023
        print(output)
        return
    assert signal != "mask"
    signals = signals_of((frame() for frame in source.frames()), signal, low, high)
    publish(output, lambda partial: encode(signals, source.rate, {}, partial, encoding), overwrite=overwrite)
    print(output)
