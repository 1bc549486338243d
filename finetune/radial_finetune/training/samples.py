"""Clips that a run makes as it goes, from fixed prompts and seeds, on one page to compare."""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from radial.files import publish_text
from radial.loading.load import LoadedModel
from radial.video.clip import Video
from radial_finetune.data.prepare import encode_texts
from radial_finetune.objective import Objective, Text

_NAME = re.compile(r"\d{6,}-\d{2,}-\d+\.mp4")


@dataclass(frozen=True)
class SampleTexts:
    """Prompts, encoded while the text encoder was at hand, and the text of the negative prompt."""

    prompts: tuple[str, ...]
    texts: tuple[Text, ...]
    negative: Text


def encode_samples(objective: Objective, prompts: Sequence[str]) -> SampleTexts:
    """The texts of the clips to make."""
    encoded = [
        objective.stack_text([text]) for text in encode_texts(objective, [*prompts, objective.spec.negative_prompt])
    ]
    return SampleTexts(tuple(prompts), tuple(encoded[:-1]), encoded[-1])


def make_samples(
    model: LoadedModel, objective: Objective, vae: Any, texts: SampleTexts, lengths: Sequence[int],
    size: tuple[int, int], steps: int, folder: Path, step: int, *, write: bool = True,
) -> None:  # fmt: skip
    """Make every clip at every length with the transformer as it stands, and add them to the page."""
    pipe, spec = model.pipe, model.spec
    pipe.vae = vae.to(model.device)
    transformer = pipe.transformer
    was_training = transformer.training
    transformer.eval()
    try:
        for number, text in enumerate(texts.texts):
            arguments = {
                name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
                for name, value in objective.prompt_arguments(text, texts.negative).items()
            }
            for length in lengths:
                with torch.inference_mode():
                    frames = pipe(
                        **arguments, height=size[0], width=size[1], num_frames=length, num_inference_steps=steps,
                        guidance_scale=spec.guidance_scale, generator=torch.Generator().manual_seed(number),
                        output_type="np",
                    ).frames[0]  # fmt: skip
                if write:
                    pixels = (frames * 255).round().clip(0, 255).astype("uint8")
                    name = f"{step:06d}-{number:02d}-{length}.mp4"
                    Video(pixels, spec.fps).write(folder / name, overwrite=True)
    finally:
        transformer.train(was_training)
        pipe.vae = None
        vae.to("cpu")
    if write:
        write_page(folder, texts.prompts)


def write_page(folder: Path, prompts: Sequence[str]) -> Path:
    """One page of all clips in a folder: a row for each prompt and length, a column for each step."""
    clips = [path.stem.split("-") for path in sorted(folder.glob("*.mp4")) if _NAME.fullmatch(path.name)]
    steps = sorted({step for step, _, _ in clips})
    rows = sorted({(int(number), int(length)) for _, number, length in clips})
    head = "".join(f"<th>step {int(step):,}</th>" for step in steps)
    body = ""
    for number, length in rows:
        prompt = html.escape(prompts[number] if number < len(prompts) else "")
        cells = "".join(
            f'<td><video src="{step}-{number:02d}-{length}.mp4" loop muted playsinline preload="metadata"></video></td>'
            for step in steps
        )
        body += f"<tr><th scope=row><p>{prompt}</p><small>{length} frames</small></th>{cells}</tr>\n"
    page = _PAGE.format(head=head, body=body, losses=_losses(folder.parent / "log.jsonl"))
    path = folder / "index.html"
    publish_text(path, page)
    return path


def _losses(log: Path) -> str:
    """The held-out losses so far, as a line for each time they were measured."""
    lines, entry = [], {}
    if log.is_file():
        for text in log.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line may be torn
                entry = json.loads(text)
            if "validation" in entry:
                beyond = entry.get("validation_beyond")
                more = "" if beyond is None else f", beyond the native length {beyond:.4f}"
                lines.append(f"<li>step {entry['step']:,}: {entry['validation']:.4f}{more}</li>")
    return f"<h2>Held-out loss</h2><ul>{''.join(lines)}</ul>" if lines else ""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Samples</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .4rem .6rem; text-align: left; vertical-align: top; font-weight: 500; }}
th[scope=row] {{ position: sticky; left: 0; background: Canvas; max-width: 16rem; }}
th p {{ margin: 0; }} small {{ color: GrayText; }}
video {{ width: 220px; border-radius: 6px; background: #8884; display: block; }}
button {{ font: inherit; padding: .4rem .9rem; border-radius: 6px; }}
ul {{ columns: 18rem; padding-left: 1.2rem; }}
</style></head><body>
<h1>Samples</h1>
<p>The same prompts and seeds at every step. <button onclick="toggle()">Play all from the start</button></p>
<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>
{body}</tbody></table></div>
{losses}
<script>
function toggle() {{
  for (const video of document.querySelectorAll("video")) {{ video.currentTime = 0; video.play(); }}
}}
for (const video of document.querySelectorAll("video")) {{
  video.addEventListener("click", () => video.paused ? video.play() : video.pause());
}}
</script></body></html>
"""
