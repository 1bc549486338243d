"""Options that commands of several files share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Format = Annotated[
    Literal["mp4", "webm", "gif", "png"] | None,
    typer.Option("--format", help="Kind of file; png is a folder of frames."),
]
Codec = Annotated[Literal["h264", "h265", "av1", "vp9"] | None, typer.Option(help="Codec of mp4 and webm.")]
Crf = Annotated[int | None, typer.Option(help="Quality of mp4 and webm; lower is better and larger.")]
Metadata = Annotated[bool, typer.Option("--metadata/--no-metadata", help="Keep the receipt in the file.")]
Device = Annotated[list[str] | None, typer.Option(help="cpu or cuda:N, repeatable; all of the machine by default.")]
PerDevice = Annotated[int, typer.Option(min=1, max=16, help="Workers on each device.")]
SnapshotSeconds = Annotated[float, typer.Option(min=0, help="Between two snapshots of a run.")]
PrecisionChoice = Annotated[
    Literal["full", "eight_bit", "eight_bit_weights"],
    typer.Option(
        help="eight_bit is faster and takes half the memory, on newer GPUs; eight_bit_weights takes half the memory."
    ),
]
ModelName = Annotated[
    str,
    typer.Option(help="A name from `radial models`, a hub id, a checkpoint folder, or the file of a transformer."),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the queue; else RADIAL_DATA_DIR, or the platform's.", metavar="FOLDER")
]
