"""``radial evaluate``: measures of clips, of radial against dense attention, and of what a model makes of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from radial.errors import RequestError

app = typer.Typer(name="evaluate", help="Measure clips and models, without downloaded weights.", no_args_is_help=True)
stderr = Console(stderr=True)

Out = Annotated[Path | None, typer.Option(help="Folder for the numbers as JSON, and plots.")]
Model = Annotated[str, typer.Option(help="A name from `radial models`, a hub id, or a checkpoint folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Loras = Annotated[list[str] | None, typer.Option(help="Adapter, repeatable.", metavar="FILE")]


@app.command()
def clips(
    files: Annotated[list[Path], typer.Argument(help="Videos.", metavar="FILE...")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A video to hold them against, or, repeated, one for each.", metavar="FILE"),
    ] = None,
    out: Out = None,
) -> None:
    """Motion, steadiness, drift, freezes, repetition and cuts of videos, per second and in all."""
    from dataclasses import asdict

    from radial.video.reader import open_clip, rate_note
    from radial_finetune.evaluate import pairs
    from radial_finetune.evaluate.measures import TITLES, measure

    beside = pairs.pair_up(files, against) if against else []
    if beside:
        pairs.multiscale()  # what is missing is told before clips are read
    every = list(dict.fromkeys([*files, *(against or [])]))
    rates = []
    for file in every:
        with open_clip(file) as clip:
            rates.append(clip.fps or 24.0)
    fps = min(rates)  # one for all, or their measures would not be of one kind
    found: dict[str, dict[str, Any]] = {}
    names: dict[Path, str] = {}
    for file in every:
        with open_clip(file, file.name) as clip, stderr.status(f"{file.name}: measured"):
            names[file] = _name(file, found)
            found[names[file]] = asdict(measure(clip.at(fps), fps))
            for note in filter(None, (rate_note(clip, fps), *clip.notes)):
                stderr.print(note, highlight=False)
    measures = [name for name in next(iter(found.values())) if name != "seconds"]
    _print_table("", {name: {key: _number(values[key]) for key in measures} for name, values in found.items()})
    if beside:
        held = {}
        for file, other in beside:
            with open_clip(file) as one, open_clip(other) as two, stderr.status(f"{file.name}: compared"):
                title = f"{names[file]} against {names[other]}"
                held[title] = asdict(pairs.hold_against(one.at(fps), two.at(fps), fps))
        _print_table("", {title: {key: _number(value) for key, value in v.items()} for title, v in held.items()})
        apart = {}
        if len(beside) > 1:
            apart = pairs.differences([(found[names[one]], found[names[two]]) for one, two in beside])
            told = {key: f"{mean:.3g} ({low:.3g} to {high:.3g})" for key, (mean, low, high) in apart.items()}
            _print_table("", {f"difference, {len(beside)} pairs (95 % interval)": told})
        if out is not None:
            _write(out, "against", {"pairs": held, "differences": apart})
    if out is not None:
        _write(out, "clips", found)
        _plot(out / "clips.png", {name: _lines(v["seconds"], TITLES) for name, v in found.items()},
              list(TITLES.values()), "second")  # fmt: skip


@app.command()
def attention(
    prompt: Annotated[str | None, typer.Argument(help="What the clip shows.", metavar="PROMPT")] = None,
    model: Model = "tiny",
    captures: Annotated[
        Path | None,
        typer.Option(help="In place of a clip: files with q, k and v of a model, after positions.", metavar="FOLDER"),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Of captures: latent frames, rows and columns of tokens.", metavar="FxHxW")
    ] = None,
    before: Annotated[int, typer.Option(min=0, help="Of captures: tokens before the clip's.")] = 0,
    density: Annotated[list[float] | None, typer.Option(help="Of captures: adaptive, repeatable.")] = None,
    block_size: Annotated[int, typer.Option(help="Of captures: tokens a block.")] = 128,
    num_frames: Annotated[int | None, typer.Option(help="Length in frames.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    decay: Annotated[float | None, typer.Option(help="Window of radial attention; smaller is sparser.")] = None,
    far_field: Annotated[
        Literal["drop", "mean", "pyramid"] | None, typer.Option(help="What becomes of blocks that are left out.")
    ] = None,
    token_order: Annotated[
        Literal["raster", "columns"] | None, typer.Option(help="Order of tokens: in raster, or in columns along time.")
    ] = None,
    lora: Loras = None,
    seed: Annotated[int, typer.Option(help="Seed of both clips.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """One clip, radial and dense at the same seed: PSNR, SSIM, and the error of each step's attention. Or ways to
    attend on captured queries, keys and values: what they keep of the softmax's mass, and their error."""
    if captures is not None:
        from radial.profiling import captures as captured

        with stderr.status("captures are judged"):
            found = captured.judge_folder(captures, grid, before, decay, density, block_size, device)
        _print_table(f"{len(found)} captures", captured.summary(found))
        if out is not None:
            _write(out, "captures", captured.told(found))
        return
    if prompt is None:
        raise RequestError("give a prompt for a clip, or --captures with --grid")
    import numpy as np

    from radial.request import make_request
    from radial.video.clip import Video
    from radial_finetune.evaluate.compare import compare

    request = make_request(
        prompt=prompt, model=model, num_frames=num_frames, height=height, width=width, decay=decay, seed=seed,
        num_inference_steps=num_inference_steps, loras=[{"path": path} for path in lora or []], device=device,
        dtype=dtype, far_field=far_field, token_order=token_order,
    ).resolve()  # fmt: skip
    result = compare(request)
    told = {"PSNR, dB": f"{result.psnr:.2f}", "SSIM": f"{result.ssim:.4f}",
            "attention error": f"{result.mean_attention_error:.2e}"}  # fmt: skip
    _print_table("", {"radial against dense": told})
    if out is not None:
        by_step = [float(np.mean(step)) for step in result.attention_error]
        values = {"psnr": result.psnr, "ssim": result.ssim, "attention_error": result.attention_error}
        _write(out, "attention", values | {"request": request.model_dump(mode="json")})
        curve = {"attention": [(np.arange(len(by_step)), np.array(by_step))]}
        _plot(out / "attention.png", curve, ["relative error of attention"], "step")
        for name, frames in (("dense", result.dense), ("radial", result.radial)):
            Video(frames, request.fps or 16).write(out / f"{name}.mp4", overwrite=True)


@app.command()
def shapes(
    model: Model = "tiny",
    num_frames: Annotated[int | None, typer.Option(help="Length in frames.")] = None,
    lora: Loras = None,
    long_adapter: Annotated[bool, typer.Option(help="Use the model's own adapter for longer clips.")] = True,
    attention: Annotated[list[str] | None, typer.Option(help="radial, dense or, repeated, both.")] = None,
    riflex: Annotated[bool | None, typer.Option(help="Slow one temporal frequency.")] = None,
    positions: Annotated[
        Literal["model", "riflex", "interpolate", "ntk", "yarn"] | None,
        typer.Option(help="Positions along time beyond the native length."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts with one figure, and as many with two.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Clips of each prompt.")] = 1,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to follow the prompt.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips that are made at a time.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """What a model makes of prompts from the shapes world, against ground truth over the whole clip."""
    from radial.files import publish_text
    from radial.loading.load import load
    from radial.plans.drawing import write_png
    from radial.request import make_request
    from radial_finetune.data.pictures import contact_sheet
    from radial_finetune.evaluate import shapes as world

    kinds = attention or ["dense", "radial"]
    if unknown := [kind for kind in kinds if kind not in ("dense", "radial")]:
        raise RequestError(f"attention must be radial or dense, not {unknown[0]!r}")
    request = make_request(
        prompt="evaluation", model=model, num_frames=num_frames, riflex=riflex, positions=positions,
        guidance_scale=guidance_scale, num_inference_steps=num_inference_steps,
        loras=[{"path": path} for path in lora or []], long_adapter=long_adapter, device=device, dtype=dtype, seed=0,
    ).resolve()  # fmt: skip
    loaded = load(request)
    results: dict[str, world.Result] = {}
    sheet: list[tuple[str, Any]] = []
    scenes = {"one figure": world.held_out(prompts, [1]), "two figures": world.held_out(prompts, [2])}
    with world.scoring() as score:
        for figures, members in scenes.items():
            results[f"ground truth, {figures}"] = world.score_truth(members, request.clip_frames, score)
            for kind in kinds:
                name = f"{kind}, {figures}"

                def keep(seed: int, made: list[Any], name: str = name, members: Any = members) -> None:
                    if seed == 0:
                        sheet.extend((f"{name}: {text}", clip) for (_, text), clip in zip(members, made, strict=True))

                with stderr.status(f"{name}: {len(members) * seeds} clips"):
                    results[name] = world.score_model(
                        request.model_copy(update={"attention": kind}), loaded, members, score, range(seeds),
                        batch_size, keep,
                    )  # fmt: skip
    measures = [*world.MEASURES, "whole clip"]
    _print_table("%", {n: {m: _interval(r.interval(m)) for m in measures} for n, r in results.items()})
    if out is not None:
        values = {name: {m: list(v) for m, v in r.values.items()} | {"misses": r.misses} for name, r in results.items()}
        _write(out, "shapes", {"request": request.model_dump(mode="json"), "values": values})
        publish_text(out / "shapes.md", world.to_markdown(results, measures))
        write_png(contact_sheet(sheet[:: max(1, len(sheet) // 24)][:24]), out / "shapes.png", overwrite=True)


@app.command()
def story(
    model: Model = "tiny",
    lora: Loras = None,
    causal: Annotated[bool, typer.Option("--causal", help="The model makes stories in chunks by itself.")] = False,
    stories: Annotated[int, typer.Option(min=2, help="Held-out stories, in twins.")] = 64,
    segments: Annotated[list[int] | None, typer.Option(help="Their lengths in segments, repeatable.")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="memory, none, window, shuffled, full, looks or windows; repeatable. The first four by default."
        ),
    ] = None,
    remember: Annotated[
        Literal["none", "last_frame", "mean_pool", "radial"] | None,
        typer.Option(help="What an earlier segment leaves; as the adapter was tuned by default."),
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to follow the prompts.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Stories that are made at a time; even.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Whether figures that return in a story look as they did, and what without its memory: recall, drift, seams."""
    from radial.loading.load import load
    from radial.plans.drawing import write_png
    from radial.stories.request import make_story_request
    from radial.stories.script import Line
    from radial_finetune.data.pictures import contact_sheet
    from radial_finetune.evaluate import casts
    from radial_finetune.evaluate.shapes import scoring_processes
    from radial_finetune.evaluate.story_windows import make_window_films
    from radial_finetune.world.story import UNIT

    known = (*casts.CONTROLS, "windows")
    chosen = control or known[:4]
    if unknown := [one for one in chosen if one not in known]:
        raise RequestError(f"control must be one of {', '.join(known)}, not {unknown[0]!r}")
    if batch_size % 2:
        raise RequestError(f"batch_size must be even, as twins are made beside each other, not {batch_size}")
    fields = {"model": model, "loras": [{"path": path} for path in lora or []], "guidance_scale": guidance_scale,
              "num_inference_steps": num_inference_steps, "device": device, "dtype": dtype, "seed": seed}  # fmt: skip
    wanted = make_story_request(
        [Line("evaluation")], fields, causal=causal, memory={"kind": remember} if remember else None
    )
    if wanted.memory is None:
        raise RequestError(f"{model} makes no story chunk by chunk: give --lora, or --causal where it does by itself")
    loaded = load(wanted.request)
    if "windows" in chosen:
        base = make_story_request([Line("evaluation")], fields | {"loras": []}).request
        without_adapter = load(base)
    results: dict[str, dict[str, tuple[float, float, float]]] = {}
    tokens: dict[str, list[int]] = {}
    sheet: list[tuple[str, Any]] = []
    with scoring_processes() as pool:
        for length in segments or [6, 12]:
            groups = casts.held_out_casts(stories, length, wanted.memory, UNIT // loaded.spec.stride[0], batch_size)
            parts = [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]
            truth = [casts.score_films(pool, casts.true_films(part, loaded.device), part) for part in parts]
            results[f"truth, {length}"] = casts.summarise([one for part in truth for one in part.get()])
            for kind in chosen:
                name, scored, kept = f"{kind}, {length}", [], tokens.setdefault(f"{kind}, {length}", [])

                def count(chunk: int, cache: Any, kept: list[int] = kept) -> None:
                    if chunk == len(kept):
                        kept.append(cache.tokens)

                with stderr.status(f"{name}: {stories} stories"):
                    for part in parts:
                        if kind == "windows":
                            films = make_window_films(base, without_adapter, part, seed)
                        else:
                            films = casts.make_films(wanted.request, loaded, wanted.memory, part, kind, seed, count)
                        scored.append(casts.score_films(pool, films, part))
                        sheet.append((f"{name}: {part[0].words[0]}", films[0]))
                results[name] = casts.summarise([one for part in scored for one in part.get()])
    measures = list(dict.fromkeys(measure for result in results.values() for measure in result))
    told = {n: {m: _interval(r[m]) if m in r else "" for m in measures} for n, r in results.items()}
    _print_table("%", told)
    if out is not None:
        _write(out, "story", {"request": wanted.told(), "results": results, "tokens_kept": tokens})
        write_png(contact_sheet(sheet[:24]), out / "story.png", overwrite=True)


@app.command()
def control(
    model: Model = "tiny-control",
    task: Annotated[list[str] | None, typer.Option(help="What steers, repeatable; all by default.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Held-out clips of each task.")] = 32,
    attention: Annotated[Literal["radial", "dense"], typer.Option(help="radial or dense.")] = "radial",
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to follow the prompt.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Whether a model of the shapes world follows what steers it: figure, colour, path, holes, what is given."""
    from radial.files import publish_text
    from radial.loading.load import load
    from radial.plans.drawing import write_png
    from radial.request import make_request
    from radial_finetune.data.pictures import contact_sheet
    from radial_finetune.evaluate import control as steering

    chosen = task or list(steering.TASKS)
    if unknown := [one for one in chosen if one not in steering.TASKS]:
        raise RequestError(f"task must be one of {', '.join(steering.TASKS)}, not {unknown[0]!r}")
    request = make_request(
        prompt="evaluation", model=model, attention=attention, guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps, device=device, dtype=dtype, seed=0,
    ).resolve()  # fmt: skip
    loaded = load(request)
    if "control_video" not in loaded.spec.steered_by or "keyframes" not in loaded.spec.steered_by:
        raise RequestError(f"{model} is not steered as VACE is; tiny-control is")
    results: dict[str, dict[str, tuple[float, float, float]]] = {}
    sheet: list[tuple[str, Any]] = []
    for name in chosen:
        members = steering.held_out_controls(name, clips)
        with stderr.status(f"{name}: {clips} clips"):
            made = {
                "truth": [one.frames() for one in members],
                "autoencoder": steering.through_autoencoder(loaded, members),
                attention: steering.make_controlled(request, loaded, members),
            }
        for kind, films in made.items():
            scores = [steering.score_control(film, one) for film, one in zip(films, members, strict=True)]
            results[f"{name}, {kind}"] = steering.summarise_controls(scores)
        for film, one in list(zip(made[attention], members, strict=True))[:3]:
            sheet += [(f"{name}: {one.prompt}", steering.shown(one)), ("made", film)]
    told = steering.to_markdown(results)
    Console().print(told, highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        _write(out, "control", {"request": request.model_dump(mode="json"), "results": results})
        publish_text(out / "control.md", told)
        write_png(contact_sheet(sheet), out / "control.png", overwrite=True)


def _print_table(corner: str, columns: dict[str, dict[str, str]]) -> None:
    """A row for each measure: there are more of them than a terminal is wide."""
    table = Table(corner, *columns)
    for measure in next(iter(columns.values())):
        table.add_row(measure.replace("_", " "), *(column[measure] for column in columns.values()))
    Console().print(table)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _interval(values: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.1f} ({low:.0f}-{high:.0f})"


def _lines(seconds: dict[str, Any], names: Iterable[str]) -> list[tuple[Any, Any]]:
    """Curves for a plot; what is not judged is a gap."""
    import numpy as np

    return [(np.arange(len(seconds[name])), np.array(seconds[name], float)) for name in names]


def _name(file: Path, taken: dict[str, Any]) -> str:
    return file.name if file.name not in taken else str(file)


def _write(out: Path, name: str, values: Any) -> None:
    from radial_finetune.data.cache import write_json

    write_json(out / f"{name}.json", values)
    stderr.print(f"written to {out}", highlight=False)


def _plot(path: Path, curves: Any, titles: list[str], across: str) -> None:
    from radial.files import publish
    from radial_finetune.data.pictures import draw_curves

    publish(path, lambda partial: draw_curves(curves, titles, partial, across), overwrite=True)
