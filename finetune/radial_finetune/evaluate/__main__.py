"""``python -m radial_finetune.evaluate --out FOLDER``: how well a model follows prompts of the shapes world.

Held-out prompts go through the real pipeline, dense and radial at the same seeds; OpenCV reads colour, shape and
motion from the frames. The same measure on ground-truth clips stands beside, as its ceiling.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from radial.attention import apply
from radial.errors import GenerationError
from radial.loading import LoadedModel, load
from radial.request import GenerationRequest, make_request
from radial_finetune.evaluate.score import FigureScore, score_clip, use_one_thread
from radial_finetune.world import Scene, describe, draw_scene, render

# Training draws its scenes from small seeds. These clips are new to it; what a lone figure is and does may have
# occurred in training, since there are but 30,000 such combinations.
HELD_OUT_SEED = 20_261_123
MEASURES = ("colour", "shape", "motion", "all")
Clip = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m radial_finetune.evaluate", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json, report.md and sheet.png")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=64, help="prompts with one figure, and as many with two")
    parser.add_argument("--guidance-scale", type=float, nargs="+", help="one or several; the model's own if left out")
    parser.add_argument("--attention", nargs="+", default=["dense", "radial"], choices=["dense", "radial"])
    parser.add_argument("--decay", type=float)
    parser.add_argument("--num-inference-steps", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()

    request = make_request(
        prompt="evaluation",
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        decay=options.decay,
        num_inference_steps=options.num_inference_steps,
        seed=0,
    ).resolve()
    model = load(request)
    scenes = {figures: held_out(options.prompts, figures) for figures in (1, 2)}
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    sheet: list[tuple[str, Clip]] = []
    # Fresh processes: a fork would share the GPU's state.
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 8), initializer=use_one_thread) as pool:
        for figures, members in scenes.items():
            truth = [to_pixels(render([scene], request.clip_frames)[0]) for scene, _ in members]
            scores = pool.starmap(score_clip, [(clip, scene) for clip, (scene, _) in zip(truth, members, strict=True)])
            rows.append(summarize("ground truth", figures, None, scores))
        for guidance in options.guidance_scale or [request.guidance_scale]:
            for attention in options.attention:
                for figures, members in scenes.items():
                    asked = request.model_copy(update={"guidance_scale": guidance, "attention": attention})
                    start = time.monotonic()
                    clips = generate_clips(asked, model, [text for _, text in members], options.batch_size)
                    scores = pool.starmap(
                        score_clip, [(clip, scene) for clip, (scene, _) in zip(clips, members, strict=True)]
                    )
                    rows.append(summarize(attention, figures, guidance, scores))
                    print(format_row(rows[-1]), f"  {time.monotonic() - start:.0f} s", flush=True)
                    if attention == options.attention[-1]:
                        sheet += [(text, clip) for (_, text), clip in list(zip(members, clips, strict=True))[:12]]
    report = {"request": request.model_dump(mode="json"), "fingerprint": model.fingerprint, "rows": rows}
    (options.out / "report.json").write_text(json.dumps(report, indent=1))
    (options.out / "report.md").write_text(to_markdown(rows))
    draw_sheet(sheet[:24]).save(options.out / "sheet.png", optimize=True)
    print(to_markdown(rows))


def held_out(count: int, figures: int) -> list[tuple[Scene, str]]:
    """Scenes and their prompts, the same on every machine."""
    rng = random.Random(HELD_OUT_SEED + figures)
    scenes = [draw_scene(rng, figures) for _ in range(count)]
    return [(scene, describe(scene, rng).text) for scene in scenes]


def generate_clips(request: GenerationRequest, model: LoadedModel, prompts: list[str], batch_size: int) -> list[Clip]:
    """Clips of many prompts through the pipeline, several at a time, seeds counting from 0."""
    pattern, schedule, block_size = request.radial_settings(model.spec)
    clips: list[Clip] = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        with contextlib.ExitStack() as stack:
            if request.attention == "radial":
                stack.enter_context(apply(model.pipe, pattern=pattern, schedule=schedule, block_size=block_size))
            stack.enter_context(torch.inference_mode())
            frames = model.pipe(
                prompt=part,
                negative_prompt=[request.negative_prompt or ""] * len(part),
                height=request.height,
                width=request.width,
                num_frames=request.num_frames,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(start + i) for i in range(len(part))],
                max_sequence_length=model.spec.max_sequence_length,
                output_type="np",
            ).frames
        if not np.isfinite(frames).all():
            raise GenerationError("the decoded frames are not all numbers; try --dtype float32")
        clips += [(clip * 255).round().clip(0, 255).astype(np.uint8) for clip in frames]
    return clips


def to_pixels(clip_CTHW: torch.Tensor) -> Clip:
    """A rendered clip as uint8 ``[T, H, W, 3]``."""
    pixels: Clip = ((clip_CTHW + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
    return pixels


def summarize(what: str, figures: int, guidance: float | None, scores: list[tuple[FigureScore, ...]]) -> dict[str, Any]:
    """Shares over all figures, and over clips in which everything is right."""
    flat = [score for clip in scores for score in clip]
    row: dict[str, Any] = {"what": what, "figures": figures, "guidance_scale": guidance, "clips": len(scores)}
    row |= {name: round(float(np.mean([getattr(score, name) for score in flat])), 4) for name in MEASURES}
    row["whole clip"] = round(float(np.mean([all(score.all for score in clip) for clip in scores])), 4)
    row["misses"] = [list(score.seen) for score in flat if not score.all][:200]
    return row


def format_row(row: dict[str, Any]) -> str:
    guidance = "-" if row["guidance_scale"] is None else f"{row['guidance_scale']:g}"
    values = " ".join(f"{name} {row[name]:.1%}" for name in (*MEASURES, "whole clip"))
    return f"{row['what']:13} figures {row['figures']} guidance {guidance}: {values}"


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """The report's table."""
    lines = [
        "| clips | figures | guidance | colour | shape | motion | all three | whole clip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        guidance = "" if row["guidance_scale"] is None else f"{row['guidance_scale']:g}"
        values = " | ".join(f"{row[name]:.1%}" for name in (*MEASURES, "whole clip"))
        lines.append(f"| {row['what']} | {row['figures']} | {guidance} | {values} |")
    return "\n".join(lines) + "\n"


def draw_sheet(clips: list[tuple[str, Clip]]) -> Image.Image:
    """One strip of five frames a clip under its prompt, two clips a row."""
    size, count, band = 96, 5, 22
    strip = size * count + 10
    sheet = Image.new("RGB", (2 * strip, -(-len(clips) // 2) * (size + band)), (250, 249, 246))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for index, (text, clip) in enumerate(clips):
        x, y = index % 2 * strip, index // 2 * (size + band)
        while font.getlength(text) > strip - 10:
            text = text[:-2].rstrip(" .") + "…"
        draw.text((x + 2, y + 4), text, fill=(34, 34, 40), font=font)
        for place, frame in enumerate(np.linspace(0, len(clip) - 1, count).round().astype(int)):
            sheet.paste(Image.fromarray(clip[frame]).resize((size, size)), (x + place * size, y + band))
    return sheet


if __name__ == "__main__":
    main()
