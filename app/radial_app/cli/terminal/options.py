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
Height = Annotated[int | None, typer.Option(help="Height in pixels.")]
Width = Annotated[int | None, typer.Option(help="Width in pixels.")]
NumFrames = Annotated[int | None, typer.Option(help="Length in frames.")]
NumInferenceSteps = Annotated[int | None, typer.Option(help="Denoising steps.")]
Decay = Annotated[float | None, typer.Option(help="Window of radial attention; smaller is sparser.")]
DenseLayers = Annotated[int | None, typer.Option(help="Leading layers that stay dense.")]
DenseSteps = Annotated[int | None, typer.Option(help="Leading steps that stay dense.")]
DenseLastSteps = Annotated[int | None, typer.Option(help="Trailing steps that stay dense.")]
BlockSize = Annotated[int | None, typer.Option(help="Tokens a block: 16, 32, 64, 128 or 256.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the queue; else RADIAL_DATA_DIR, or the platform's.", metavar="FOLDER")
]
