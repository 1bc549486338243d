"""``radial finetune prepare`` and ``caption``: from files that users have to a cache that a run trains on."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import progress
from rich.console import Console
from rich.table import Table

from radial.errors import RequestError
from radial_finetune.data.buckets import Bucket, parse_area, parse_bucket, spread_sizes
from radial_finetune.data.captions import MOST_CAPTIONS, TagVariants
from radial_finetune.data.clips import Cut

stderr = Console(stderr=True)

_NOTES = 10  # on files, that prepare prints; the report has all
_LONGEST_PROMPT = 4000
_PAUSE = 30.0  # seconds between two lines of a log at most


class Pace:
    """When a line is due where no bar is shown, as under nohup: at the first and last step, each tenth part of the way,
    and whenever the last one is half a minute old."""

    def __init__(self, total: int) -> None:
        self._total, self._last, self._part = total, -math.inf, -1

    def is_due(self, done: int) -> bool:
        now, part = time.monotonic(), 10 * done // max(1, self._total)
        if part == self._part and now - self._last < _PAUSE:
            return False
        self._last, self._part = now, part
        return True


def prepare(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of videos and pictures with .txt captions, a table, a dataset.toml that names several, a "
            "dataset, or WebDataset shards."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the cache.")],
    model: Annotated[str, typer.Option(help="A name from `radial models`, a hub id, or a checkpoint folder.")] = "tiny",
    num_frames: Annotated[list[int] | None, typer.Option(help="Frames a clip; repeat it for several lengths.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    bucket: Annotated[
        list[str] | None,
        typer.Option(help="A size of clips, repeatable, in place of the three above.", metavar="FxHxW"),
    ] = None,
    buckets: Annotated[
        Literal["auto"] | None,
        typer.Option(help="auto: sizes for every shape that cameras have, each clip to the nearest."),
    ] = None,
    area: Annotated[
        str | None,
        typer.Option(help="Pixels of a frame that sizes with --buckets auto keep to; the model's.", metavar="HxW"),
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, help="Frames a second, by default the model's.")] = None,
    crop: Annotated[Literal["centre", "random"], typer.Option(help="Which part of a larger frame to keep.")] = "centre",
    cut_threshold: Annotated[
        float, typer.Option(min=0, max=255, help="Change, of 255, that can be a new scene or a dissolve; 255: none is.")
    ] = 15.0,
    static_threshold: Annotated[
        float, typer.Option(min=0, help="Change of a pixel in a second, of 255, below which a clip is left out.")
    ] = 1.0,
    crop_bars: Annotated[
        bool, typer.Option("--crop-bars", help="Cut off black bars around videos; else they are but told.")
    ] = False,
    ground: Annotated[str, typer.Option(help="Colour under see-through parts, such as white or #7f7f7f.")] = "black",
    max_clips: Annotated[
        int | None, typer.Option(min=1, help="Clips of a file at most, spread over it; a dataset.toml may say others.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which clips those are, and how tags vary.")] = 0,
    whole_captions: Annotated[
        bool, typer.Option("--whole-captions", help="A .txt of several lines is one caption, not one a line.")
    ] = False,
    tag_variants: Annotated[
        int, typer.Option(min=1, max=MOST_CAPTIONS, help="Captions to make of one with commas, its tags shuffled.")
    ] = 1,
    tag_dropout: Annotated[
        float, typer.Option(min=0, max=0.99, help="How likely a tag is left out of such a variant.")
    ] = 0.0,
    keep_tags: Annotated[int, typer.Option(min=0, help="Tags at the beginning that stay there.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips that are encoded at a time.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode; one a core by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    inside: Annotated[
        bool, typer.Option("--inside", help="Refuse files that lie outside the folder, where somebody else filled it.")
    ] = False,
) -> None:
    """Cut videos into clips and fit pictures to their sizes, and encode them, once. What is there already is kept."""
    from radial.loading.load import load
    from radial.models.find import find_model
    from radial.request import make_request
    from radial_finetune.data.pictures import check_plots
    from radial_finetune.data.prepare import prepare as prepare_cache
    from radial_finetune.data.sources import Source, find_sources
    from radial_finetune.objective import stands_for_frames

    if bucket and (num_frames or height or width):
        raise RequestError("--bucket says all three sizes; leave out --num-frames, --height and --width")
    if buckets and (bucket or height or width):
        raise RequestError("--buckets auto finds heights and widths by itself; --area bounds them")
    if area and not buckets:
        raise RequestError("--area goes with --buckets auto; else give --height and --width, or --bucket")
    if tag_variants == 1 and (tag_dropout or keep_tags):
        raise RequestError(
            "--tag-dropout and --keep-tags need --tag-variants of 2 or more: text is encoded once, here, so that each "
            "variant is a caption of its own, of which every step draws one"
        )
    check_colour(ground)
    check_plots()
    sources = find_sources(data, inside=inside, whole_captions=whole_captions)
    if tag_variants > 1:
        variants = TagVariants(tag_variants, tag_dropout, keep_tags, seed)
        sources = [source.told(variants.of(source.captions)) for source in sources]
    shapes = [parse_bucket(text) for text in bucket or []]
    sizes: tuple[tuple[int, int], ...] = ()
    if buckets:
        spec = find_model(model)
        if area and spec.bucket_side is not None:
            raise RequestError(f"{spec.name} makes clips from images in sizes of its own: leave out --area")
        spread = spread_sizes(parse_area(area) if area else (spec.height, spec.width), spec.stride[1:])
        sizes = tuple(dict.fromkeys(spec.bucket(*size) for size in spread))
    largest = max(shapes, default=None)
    high, wide = (sizes[0] if sizes else (height, width)) if largest is None else (largest.height, largest.width)
    request = make_request(
        prompt="prepare", model=model, device=device, dtype=dtype, seed=0, long_adapter=False, height=high, width=wide,
        num_frames=largest.num_frames if largest else max(num_frames, default=None) if num_frames else None,
        **stands_for_frames(find_model(model)),
    ).resolve()  # fmt: skip
    shapes = shapes or [
        Bucket(n, *size)
        for n in dict.fromkeys(num_frames or [request.clip_frames])
        for size in sizes or [(request.clip_height, request.clip_width)]
    ]
    loaded = load(request)
    cut = Cut(
        tuple(shapes), fps or float(loaded.spec.fps), crop, cut_threshold, static_threshold, ground=ground,
        max_clips=max_clips, seed=seed, crop_bars=crop_bars,
    )  # fmt: skip
    with progress.Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("encoding", total=len(sources))
        pace = Pace(len(sources))

        def tell(done: int, total: int, source: Source) -> None:
            bar.update(task, completed=done, description=f"encoding {source.name}")
            if bar.disable and pace.is_due(done):
                stderr.print(
                    f"file {done + 1} of {total}: {source.name}", highlight=False, markup=False, soft_wrap=True
                )

        report = prepare_cache(sources, out, loaded, cut, batch_size=batch_size, workers=workers, on_file=tell)
    table = Table(show_header=False, box=None)
    table.add_row("files", str(report.files))
    table.add_row("clips kept", str(report.kept))
    for size, count in report.buckets.items():
        table.add_row(f"  of {size}", str(count))
    for reason, count in report.dropped.items():
        table.add_row(f"pieces left out, {reason}", str(count))
    for name in report.corrupt:
        table.add_row("corrupt file", name)
    for note in [*report.notes, *[note for fate in report.fates for note in fate.notes][:_NOTES]]:
        table.add_row("note", note)
    table.add_row("report", f"{out / 'report.png'}, {out / 'sheet.png'}")
    stderr.print(table)
    print(out)


def check_colour(name: str) -> None:
    """Make sure that a colour is one.

    Raises:
        RequestError: it is not.
    """
    from PIL import ImageColor

    try:
        ImageColor.getrgb(name)
    except ValueError:
        raise RequestError(f"--ground takes a colour, such as white or #7f7f7f, not {name[:40]!r}") from None


def caption(
    folder: Annotated[Path, typer.Argument(help="Folder of videos and pictures.")],
    model: Annotated[
        str, typer.Option(help="A vision language model that transformers knows: a hub id, or its folder.")
    ],
    prompt: Annotated[str | None, typer.Option(help="What it is asked.")] = None,
    frames: Annotated[int, typer.Option(min=1, max=64, help="Frames of a video that it is shown.")] = 8,
    trigger: Annotated[str, typer.Option(help="A word that every caption begins with.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, max=2048, help="Tokens of a caption at most.")] = 256,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace captions that are there.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"], typer.Option(help="Numbers that it computes in.")
    ] = "auto",
) -> None:
    """Write a caption beside every video and picture that has none. Stopped, it goes on where it was."""
    from radial.errors import ModelError, OutputError
    from radial_finetune.data.captioner import (
        PROMPT,
        check_trigger,
        files_to_caption,
        load_captioner,
        write_caption,
    )

    asked = PROMPT if prompt is None else prompt.strip()
    if not asked or len(asked) > _LONGEST_PROMPT:
        raise RequestError(f"--prompt takes 1 to {_LONGEST_PROMPT} letters, not {len(asked)}")
    trigger = check_trigger(trigger)
    todo = files_to_caption(folder, overwrite=overwrite)
    if not todo:
        stderr.print("every clip has a caption; --overwrite writes them anew", highlight=False)
        return
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )  # fmt: skip
    failed: list[str] = []
    with progress.Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        coming = bar.add_task("loading", total=None)
        captioner = load_captioner(
            model, device, dtype, lambda done, total: bar.update(coming, completed=done, total=total),
            prompt=asked, frames=frames, trigger=trigger, max_new_tokens=max_new_tokens,
        )  # fmt: skip
        bar.remove_task(coming)
        task = bar.add_task("captions", total=len(todo))
        pace = Pace(len(todo))
        for done, file in enumerate(todo, 1):
            bar.update(task, completed=done - 1, description=file.name)
            if bar.disable and pace.is_due(done):
                stderr.print(f"file {done} of {len(todo)}: {file.name}", highlight=False, markup=False, soft_wrap=True)
            try:
                said = captioner.describe(file)
            except (OutputError, RequestError) as error:
                failed.append(str(error))
                stderr.print(f"left out: {error}", highlight=False, markup=False, soft_wrap=True)
                continue
            print(write_caption(file, said, overwrite=overwrite))
    if failed:
        raise ModelError(f"{len(failed)} of {len(todo)} have no caption, such as this: {failed[0]}")
