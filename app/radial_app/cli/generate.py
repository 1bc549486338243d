"""``radial generate``: one request, rendered here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from radial.errors import RequestError
from radial.field_words import sentence
from radial.files import check_output
from radial.loading.memory_check import check_fits
from radial.models.lora_settings import parse_lora
from radial.request import GenerationRequest, make_request
from radial.shorthands import spell_out
from radial.video.encoding import encoding_for
from radial.video.finishing.steps import parse_finish
from radial_app.cli.terminal.options import (
    ATTENTION,
    BatchedGuidance,
    Cache,
    Codec,
    Crf,
    DataDir,
    Decoder,
    Force,
    Format,
    GuidanceEnd,
    GuidanceStart,
    Height,
    Metadata,
    ModelName,
    NumFrames,
    NumInferenceSteps,
    Overwrite,
    PrecisionChoice,
    Preset,
    Seconds,
    Size,
    Width,
    in_groups,
    left_open,
    takes_attention,
    told_as_options,
)
from radial_app.cli.terminal.torchrun import is_other_rank
from radial_app.jobs.finishing import finishing_after
from radial_app.jobs.folder import data_folder
from radial_app.jobs.job import DEFAULT_NAME, OUTPUT_FOLDER, Job, Output, anchored, make_output
from radial_app.jobs.presets import Presets
from radial_app.jobs.store import JobStore

_GROUPS = {
    "Clip": ("then", "enhance", "original_prompt", "negative_prompt", "model", "height", "width", "size", "num_frames",
             "seconds", "fps", "seed", "num_videos", "snap", "riflex", "positions"),
    "Sampling": ("num_inference_steps", "guidance_scale", "guidance_scale_2", "guidance_start", "guidance_end",
                 "batched_guidance", "true_cfg_scale", "preset", "sampler", "flow_shift", "cache", "decoder"),
    "Images and clips to start from": ("image", "last_image", "extend", "image_fit", "image_ground"),
    "Control": ("control_video", "face_video", "background_video", "mask", "keep_unmasked", "references", "strength",
                "keyframes"),
    "Adapters": ("lora", "long_adapter"),
    "Attention": tuple(ATTENTION),
    "Machine": ("device", "dtype", "precision", "memory", "force", "finish", "queue", "data_dir"),
}  # fmt: skip


@in_groups(_GROUPS)
@takes_attention
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help=sentence("prompt", "; - reads it from stdin"), metavar="PROMPT")],
    then: Annotated[
        list[str] | None, typer.Option(help=sentence("then", "; repeatable"), metavar="[SECONDS:]PROMPT")
    ] = None,
    enhance: Annotated[str | None, typer.Option(help=sentence("enhance"), metavar="MODEL")] = None,
    original_prompt: Annotated[str | None, typer.Option(help=sentence("original_prompt"), metavar="PROMPT")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help=sentence("negative_prompt"))] = None,
    model: ModelName = "tiny",
    height: Height = None,
    width: Width = None,
    size: Size = None,
    num_frames: NumFrames = None,
    seconds: Seconds = None,
    fps: Annotated[int | None, typer.Option(help=sentence("fps"))] = None,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: Annotated[float | None, typer.Option(help=sentence("guidance_scale"))] = None,
    guidance_scale_2: Annotated[float | None, typer.Option(help=sentence("guidance_scale_2"))] = None,
    guidance_start: GuidanceStart = 0.0,
    guidance_end: GuidanceEnd = 1.0,
    true_cfg_scale: Annotated[float | None, typer.Option(help=sentence("true_cfg_scale"))] = None,
    preset: Preset = None,
    sampler: Annotated[Literal["model", "euler", "lcm", "unipc"] | None, typer.Option(help=sentence("sampler"))] = None,
    flow_shift: Annotated[float | None, typer.Option(help=sentence("flow_shift"))] = None,
    cache: Cache = "off",
    decoder: Decoder = "full",
    batched_guidance: BatchedGuidance = False,
    image: Annotated[str | None, typer.Option(help=sentence("image"), metavar="FILE")] = None,
    last_image: Annotated[str | None, typer.Option(help=sentence("last_image"), metavar="FILE")] = None,
    extend: Annotated[str | None, typer.Option(help=sentence("extend"), metavar="FILE")] = None,
    image_fit: Annotated[Literal["crop", "pad", "stretch"], typer.Option(help=sentence("image_fit"))] = "crop",
    image_ground: Annotated[str, typer.Option(help=sentence("image_ground"), metavar="COLOUR")] = "black",
    control_video: Annotated[str | None, typer.Option(help=sentence("control_video"), metavar="FILE")] = None,
    face_video: Annotated[str | None, typer.Option(help=sentence("face_video"), metavar="FILE")] = None,
    background_video: Annotated[str | None, typer.Option(help=sentence("background_video"), metavar="FILE")] = None,
    mask: Annotated[str | None, typer.Option(help=sentence("mask"), metavar="FILE")] = None,
    keep_unmasked: Annotated[bool, typer.Option(help=sentence("keep_unmasked"))] = True,
    references: Annotated[
        list[str] | None, typer.Option(help=sentence("references", "; repeatable"), metavar="FILE")
    ] = None,
    strength: Annotated[float | None, typer.Option(help=sentence("strength"))] = None,
    keyframes: Annotated[
        list[str] | None, typer.Option(help=sentence("keyframes", "; repeatable"), metavar="FRAME:FILE")
    ] = None,
    snap: Annotated[bool, typer.Option("--snap", help=sentence("snap"))] = False,
    riflex: Annotated[bool | None, typer.Option(help=sentence("riflex"))] = None,
    positions: Annotated[
        Literal["model", "riflex", "interpolate", "ntk", "yarn"] | None,
        typer.Option(help=sentence("positions")),
    ] = None,
    seed: Annotated[int, typer.Option(help=sentence("seed"))] = -1,
    num_videos: Annotated[int, typer.Option(help=sentence("num_videos"))] = 1,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapter, repeatable; @high or @low for one of two transformers.", metavar="FILE[:WEIGHT][@high|@low]"
        ),
    ] = None,
    long_adapter: Annotated[bool, typer.Option(help=sentence("long_adapter"))] = True,
    device: Annotated[str, typer.Option(help=sentence("device"))] = "auto",
    dtype: Annotated[str, typer.Option(help=sentence("dtype"))] = "auto",
    precision: PrecisionChoice = "full",
    memory: Annotated[
        Literal["auto", "full", "balanced", "low", "lowest"],
        typer.Option(help=sentence("memory")),
    ] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write, .mp4, .webm or .gif, or a folder for it; outputs/ by default."
        ),
    ] = None,
    overwrite: Overwrite = False,
    video_format: Format = None,
    codec: Codec = None,
    crf: Crf = None,
    metadata: Metadata = True,
    finish: Annotated[
        str | None,
        typer.Option(help="Then finish it, beside itself, as `radial finish` does.", metavar="frames=2,scale=2,..."),
    ] = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="Only put it into the queue, for `radial work` or `radial serve` to render.")
    ] = False,
    force: Force = False,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a video instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the path.")] = False,
    **attention: Any,
) -> None:
    """Generate a video from a prompt.

    Example: radial generate "a red fox runs through snow" --model wan2.1-14b --size 832x480 --seconds 5 --seed 7
    """
    from radial_app.cli.terminal.run_here import render_here
    from radial_app.worker.ranks import as_first_rank, take_orders

    if is_other_rank():
        if not queue:
            take_orders(device)
        return
    if quiet or as_json:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

    written = dict(
        prompt=sys.stdin.read().strip() if prompt == "-" else prompt,
        then=then or [],
        enhance=enhance,
        original_prompt=original_prompt,
        negative_prompt=negative_prompt,
        model=model,
        height=height,
        width=width,
        size=size,
        num_frames=num_frames,
        seconds=seconds,
        fps=fps,
        preset=preset,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_scale_2=guidance_scale_2,
        guidance_start=guidance_start,
        guidance_end=guidance_end,
        true_cfg_scale=true_cfg_scale,
        flow_shift=flow_shift,
        cache=cache,
        decoder=decoder,
        batched_guidance=batched_guidance,
        image=image,
        last_image=last_image,
        extend=extend,
        control_video=control_video,
        face_video=face_video,
        background_video=background_video,
        mask=mask,
        keep_unmasked=keep_unmasked,
        references=references or [],
        strength=strength,
        keyframes=keyframes or [],
        image_fit=image_fit,
        image_ground=image_ground,
        snap=snap,
        riflex=riflex,
        positions=positions,
        seed=seed,
        num_videos=num_videos,
        **attention,
        loras=[parse_lora(text) for text in lora or []],
        long_adapter=long_adapter,
        device=device,
        dtype=dtype,
        precision=precision,
        memory=memory,
    )
    with told_as_options([*written, "format", "codec", "crf"]):
        sampled = written if sampler is None else written | {"sampler": sampler}
        sampled = Presets(data_folder(data_dir)).apply(sampled, left_open(context) | ({"loras"} if not lora else set()))
        request = anchored(make_request(**spell_out(sampled)))
        request.check_files()
        request = request.resolve()
        place = output_place(output, video_format, codec, crf, metadata, overwrite, request)
        then_finish = None if finish is None else finishing_after(parse_finish(finish), place.encoding)
    job = Job(id="", request=request, output=place, finish=then_finish)
    if not force:
        check_fits(request)
    with JobStore(data_dir) as store:
        if queue:
            (job,) = store.add([job])
            print(job.id)
            return
        with as_first_rank(device) as ranks:
            render_here(store, job, ranks=ranks, quiet=quiet, as_json=as_json)


def output_place(
    path: Path | None, video_format: Any, codec: Any, crf: int | None, metadata: bool, overwrite: bool,
    request: GenerationRequest,
) -> Output:  # fmt: skip
    """Where the videos of one command go, checked before work is spent: a name with a suffix is a file, one without a
    folder, but for frames, which are a folder of that name."""
    folder = OUTPUT_FOLDER
    if path is not None and (path.is_dir() or not path.suffix) and video_format != "png":
        folder, path = path, None
    if path is not None and video_format is None:
        video_format = encoding_for(path).format
    encoding = {"format": video_format or "mp4", "codec": codec, "crf": crf, "metadata": metadata}
    if path is None:
        output = make_output(folder=str(folder.absolute()), name=DEFAULT_NAME, encoding=encoding, overwrite=overwrite)
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
