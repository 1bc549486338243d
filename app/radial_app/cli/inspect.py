"""``radial inspect``, ``models`` and ``lora``: what a clip's attention computes, which models have a name, what an
adapter's file holds."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from radial.errors import RequestError
from radial.files import check_output
from radial.models.find import find_model
from radial.models.spec import ModelSpec
from radial.models.table import MODELS, PRESETS, nearest
from radial.request import make_request
from radial.shorthands import spell_out
from radial_app.cli.terminal.options import (
    Height,
    ModelName,
    NumFrames,
    NumInferenceSteps,
    Overwrite,
    Seconds,
    Size,
    Width,
    takes_attention,
    told_as_options,
)
from radial_app.jobs.job import OUTPUT_FOLDER, slug
from radial_app.jobs.results import free_name


@takes_attention
def inspect(
    model: ModelName = "tiny",
    height: Height = None,
    width: Width = None,
    size: Size = None,
    num_frames: NumFrames = None,
    seconds: Seconds = None,
    num_inference_steps: NumInferenceSteps = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG to write; by default one under outputs/.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of a table.")] = False,
    **attention: Any,
) -> None:
    """Draw which blocks of attention a clip computes, and what that should save."""
    from radial.plans.block_plan import BlockPlan
    from radial.plans.drawing import draw_plan, draw_work, stacked, write_png
    from radial.plans.far_field import pool_rest

    written = {
        "prompt": "inspect", "model": model, "height": height, "width": width, "size": size, "num_frames": num_frames,
        "seconds": seconds, "num_inference_steps": num_inference_steps, "seed": 0,
    }  # fmt: skip
    with told_as_options(written | attention):
        request = make_request(**spell_out(written | attention)).resolve()
    spec = find_model(model)
    clip = f"{spec.name}, {request.clip_width}x{request.clip_height}, {request.clip_frames} frames"
    path = free_name(OUTPUT_FOLDER / f"plan-{slug(clip)}.png") if output is None else output
    check_output(path, ".png", overwrite=overwrite)
    settings = request.attention_settings
    sketch = settings.sketch(request.grid(spec))
    grid, layout, rows = request.grid(spec), sketch.layout, sketch.rows
    if settings.kind == "adaptive":  # which blocks, the clip decides
        kept, density = round(sketch.density * rows**2), sketch.density
        pooled, shares = settings.share_computed(density) - density, settings.shares(grid)
    else:
        plan = BlockPlan.build(layout, settings.pattern, settings.block_size)
        far = pool_rest(plan, layout, settings.far_field)
        kept, density, pooled = plan.kept_blocks, plan.density, 0.0 if far is None else far.pairs
        shares = (1.0, density + pooled)
    work = settings.work(shares, spec.layers, request.num_inference_steps or 1)
    share = float(work.mean())
    taken = settings.sketches(grid, spec.layers, request.num_inference_steps or 1) or [(sketch, 0.0)]
    several = len(taken) > 1
    plans = [draw_plan(one, f"{clip}: {of_all:.0%} of layers and steps" if several else clip) for one, of_all in taken]
    write_png(functools.reduce(stacked, [*plans, draw_work(work, "Work")]), path, overwrite=overwrite)
    if as_json:
        told = {
            "model": spec.name, "tokens": grid.tokens, "grid": [grid.frames, grid.height, grid.width],
            "block_size": settings.block_size, "blocks": kept, "of": rows**2, "density": density,
            "attention": settings.kind, "token_order": settings.token_order, "far_field": settings.far_field,
            "pooled_share": pooled, "attention_computed": share, "drawn_in": str(path),
            "plans": [{"density": one.density, "of_layers_and_steps": of_all} for one, of_all in taken],
        }  # fmt: skip
        print(json.dumps(told, indent=2))
        return
    table = Table(show_header=False, box=None)
    table.add_row("tokens", f"{grid.tokens:,} = {grid.frames} frames x {grid.height} x {grid.width}")
    table.add_row("blocks", f"{kept:,} of {rows**2:,} ({settings.block_size} tokens a block)")
    table.add_row("density", f"{density:.1%} of a sparse layer's attention is computed")
    if layout.tile is not None:
        table.add_row("token order", "columns: blocks of about {} frames x {} x {}".format(*layout.tile))
    if pooled:
        table.add_row("far field", f"{settings.far_field}: {pooled * grid.tokens:,.0f} means a query, on average")
    if settings.policy is not None:
        table.add_row("policy", f"{settings.policy}: drawn is each density that it takes, and where")
    table.add_row("kept FLOPs", f"{share:.1%} of all attention, dense layers and steps included")
    table.add_row("kernel speed-up", _expected_speed_up(density, settings.block_size, grid.tokens))
    table.add_row("drawn in", str(path))
    Console().print(table)


def _expected_speed_up(density: float, block_size: int, tokens: int) -> str:
    """What the kernel should gain on an H100, where it was measured: benchmarks/ holds the report."""
    rate, least_tokens = 1.05, 32_768
    if block_size != 128 or tokens < least_tokens:
        return f"not measured below {least_tokens:,} tokens or for blocks other than 128"
    return f"about {rate / density:.1f}x over dense cuDNN on an H100 (at {rate:g} of its rate on kept blocks)"


def models(
    wanted: Annotated[str | None, typer.Argument(help="Only those that this word is said of.", metavar="WORD")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that have a name, and the presets; to another program a line each, parted by tabs."""
    found = [spec for spec in MODELS.values() if wanted is None or _is_said(wanted, spec)]
    if not found:
        raise RequestError(f"no model with {wanted!r} in its name, source or description{nearest(str(wanted))}")
    if as_json:
        names = (
            "name", "summary", "source", "starts_from", "steered_by", "width", "height", "num_frames", "native_frames",
            "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2", "flow_shift", "negative_prompt",
        )  # fmt: skip
        told = [{name: getattr(spec, name) for name in names} for spec in found]
        print(json.dumps({"data": told, "presets": PRESETS}, indent=2, ensure_ascii=False))
        return
    rows = [
        (spec.name, spec.summary, f"{spec.width}x{spec.height}", str(spec.num_frames),
         " or ".join(spec.starts_from), spec.source)
        for spec in found
    ]  # fmt: skip
    console = Console()
    if not console.is_terminal:
        for row in rows:
            print("\t".join(row))
        return
    if console.width < 110:  # too narrow for a table: what there is to choose by
        for name, summary, size, frames, starts, source in rows:
            console.print(f"[bold]{name}[/]  {summary}", highlight=False)
            console.print(f"  {size}, {frames} frames, from {starts}\n  {source}", style="dim", highlight=False)
    else:
        table = Table(box=None)
        for column in ("name", "what", "size", "frames", "starts from", "source"):
            table.add_column(column, no_wrap=column in ("name", "size"), overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    told_presets = (
        f"{name} ({', '.join(f'{key} {value:g}' for key, value in fields.items())})" for name, fields in PRESETS.items()
    )
    console.print(f"presets: {'; '.join(told_presets)}", highlight=False)


def _is_said(word: str, spec: ModelSpec) -> bool:
    said = (spec.name, spec.summary, spec.source, *spec.starts_from, *spec.steered_by)
    return word.lower() in " ".join(said).lower()


def lora(
    file: Annotated[Path, typer.Argument(help="An adapter (safetensors).", metavar="FILE")],
    model: Annotated[
        str | None, typer.Option(help="Account for this model; else for every named one that it acts on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every key that is left out.")] = False,
) -> None:
    """Say what an adapter's file holds, which of its layers act in a model, and why others do not."""
    from radial.adapters.file import read_adapter
    from radial.adapters.report import report_on
    from radial.models.lora_settings import adapter_file, check_adapter_file

    path = adapter_file(str(file))
    check_adapter_file(path)
    report = report_on(read_adapter(path), model)
    if as_json:
        models = {
            name: {"acting": len(account.applied), "left_out": dict(account.left_out)}
            for name, account in report.accounts.items()
        }
        print(json.dumps({"file": path.name, **report.facts, "models": models}, indent=2))
        return
    table = Table(show_header=False, box=None)
    for what, told in [("file", path.name), *report.rows()]:
        table.add_row(what, escape(told))
    Console().print(table)
