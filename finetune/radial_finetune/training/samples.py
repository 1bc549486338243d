"""Clips that a run makes as it goes, from fixed prompts and seeds, on one page to compare."""

from __future__ import annotations

import contextlib
import html
import inspect
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from radial.errors import RequestError
from radial.files import publish_text
from radial.generation.sampler import guider_for, replaced, scheduler_for
from radial.loading.load import LoadedModel
from radial.models.lora_settings import AdapterSettings
from radial.request import make_request
from radial.video.clip import Video
from radial.video.images import fit_image, read_image
from radial_finetune.data.cache import CachedClip, read_clip, read_start
from radial_finetune.data.prepare import encode_texts
from radial_finetune.objective import Objective, Text, stands_for_frames
from radial_finetune.sample_prompts import SamplePrompt

Attend = Callable[..., AbstractContextManager[object]]  # of ``steps``
_NAME = re.compile(r"\d{6,}-\d{2,}-\d+\.mp4")


@dataclass(frozen=True)
class Sample:
    """A clip to make: its prompt, and the texts encoded while the text encoder was at hand."""

    told: SamplePrompt
    text: Text
    negative: Text
    pictures: dict[str, Image.Image]

    def images(self, height: int, width: int) -> dict[str, Image.Image]:
        """The pictures that it starts from and ends on, at the clip's size."""
        return {name: fit_image(picture, height, width, "crop") for name, picture in self.pictures.items()}


def encode_samples(
    objective: Objective, prompts: Sequence[SamplePrompt], model: str, size: tuple[int, int],
    cache: Path, held_out: Sequence[CachedClip],
) -> tuple[Sample, ...]:  # fmt: skip
    """The clips to make, their texts encoded; without words to avoid of their own, they have the model's.

    Args:
        size: height and width of clips that say none.
        held_out: clips of the cache, from whose frames those start that name no picture, of models that start from one.

    Raises:
        RequestError: a prompt asks for a size, a length or steps that the model cannot do, or names a picture that
            cannot be read, or none where it starts from one and nothing is held out.
    """
    spec = objective.spec
    begun = []
    for number, told in enumerate(prompts):
        asked = {"height": size[0], "width": size[1]} | told.model_dump(exclude_none=True)
        if told.image is not None and objective.first_frame != "always":
            raise RequestError(f"samples of {spec.name} start from text alone: leave image out of sample_prompts")
        named = {name: path for name in ("image", "last_image") if (path := getattr(told, name))}
        own = not named and objective.first_frame == "always"
        make_request(**asked | (stands_for_frames(spec) if own else {}), model=model, long_adapter=False).resolve()
        if own and not held_out:
            raise RequestError(
                f"{spec.name} starts from an image: name one in sample_prompts, or set held_out, of whose clips the "
                "first frames are taken"
            )
        begun.append(
            _frames_of(objective, cache, held_out[number % len(held_out)]) if own
            else {name: read_image(Path(path))[0] for name, path in named.items()}
        )  # fmt: skip
    if objective.text_sees_frames:  # which then have no words to avoid: guidance is an input
        images = [
            Sample(one, {}, {}, pictures).images(one.height or size[0], one.width or size[1])["image"]
            for one, pictures in zip(prompts, begun, strict=True)
        ]
        texts = encode_texts(objective, [one.prompt for one in prompts], images)
        return tuple(
            Sample(one, objective.stack_text([text]), {}, pictures)
            for one, text, pictures in zip(prompts, texts, begun, strict=True)
        )
    avoided = [spec.negative_prompt if one.negative_prompt is None else one.negative_prompt for one in prompts]
    words = list(dict.fromkeys([*(one.prompt for one in prompts), *avoided]))
    encoded = dict(zip(words, encode_texts(objective, words), strict=True))
    return tuple(
        Sample(told, objective.stack_text([encoded[told.prompt]]), objective.stack_text([encoded[negative]]), pictures)
        for told, negative, pictures in zip(prompts, avoided, begun, strict=True)
    )


@torch.inference_mode()
def _frames_of(objective: Objective, cache: Path, clip: CachedClip) -> dict[str, Image.Image]:
    """The frames that a clip of the cache starts from and, where the model always does, ends on, as its autoencoder
    gives them back."""
    vae = objective.pipe.vae

    def picture(latents_CFHW: torch.Tensor, place: int) -> Image.Image:
        pixels_CFHW = objective.decode_latents(latents_CFHW[None].to(vae.device, vae.dtype))[0].float()
        frame_HWC = ((pixels_CFHW[:, place] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(frame_HWC.cpu().numpy())

    latents, _ = read_clip(cache, clip)
    found = {"image": picture(read_start(cache, clip).get("first_latent", latents[:, :1]), 0)}
    return found | ({"last_image": picture(latents, -1)} if objective.last_frame == "always" else {})


def make_samples(
    model: LoadedModel, objective: Objective, parts: dict[str, Any], samples: Sequence[Sample], lengths: Sequence[int],
    size: tuple[int, int], steps: int | None, settings: AdapterSettings, attend: Attend, folder: Path, step: int, *,
    write: bool = True,
) -> None:  # fmt: skip
    """Make every clip with the transformer as it stands, as generation would with the adapter, at every length unless
    it has one of its own, and add them to the page.

    Args:
        parts: of the pipeline, by name, that are on the device only meanwhile.
        steps: of clips that say none; the model's own where it is None.
        settings: what generation takes over from the adapter.
        attend: the attention of a clip of so many steps.
    """
    pipe, spec = model.pipe, model.spec
    steps = steps or spec.num_inference_steps
    from_image = objective.first_frame == "always"
    guidance_scale = spec.guidance_for(from_image) if settings.guidance_scale is None else settings.guidance_scale
    for name, part in parts.items():
        setattr(pipe, name, part.to(model.device))
    takes = inspect.signature(type(pipe).__call__).parameters
    transformer = pipe.transformer
    was_training = transformer.training
    transformer.eval()
    try:
        for number, sample in enumerate(samples):
            told = sample.told
            high, wide = told.height or size[0], told.width or size[1]
            images = sample.images(high, wide)
            arguments: dict[str, Any] = {
                name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
                for name, value in objective.prompt_arguments(sample.text, sample.negative).items()
            }
            scale = guidance_scale if told.guidance_scale is None else told.guidance_scale
            # HunyuanVideo 1.5 is guided by a part of its own, and from an image it finds the size by itself.
            asked = {"height": high, "width": wide, "guidance_scale": scale}
            shift = settings.flow_shift or spec.shift_for(high, wide, from_image)
            own = {
                "scheduler": scheduler_for(pipe, settings.sampler or "model", shift), "guider": guider_for(pipe, scale),
            }  # fmt: skip
            taken = told.num_inference_steps or steps
            arguments |= {name: value for name, value in asked.items() if name in takes}
            for length in (told.num_frames,) if told.num_frames else lengths:
                with attend(steps=taken), replaced(pipe, **own), torch.inference_mode():
                    frames = pipe(
                        **arguments, **images, num_frames=length, output_type="np", num_inference_steps=taken,
                        generator=torch.Generator().manual_seed(number if told.seed is None else told.seed),
                    ).frames[0]  # fmt: skip
                if write:
                    pixels = (frames * 255).round().clip(0, 255).astype("uint8")
                    name = f"{step:06d}-{number:02d}-{length}.mp4"
                    Video(pixels, spec.fps).write(folder / name, overwrite=True)
    finally:
        transformer.train(was_training)
        for name, part in parts.items():
            setattr(pipe, name, None)
            part.to("cpu")
    if write:
        write_page(folder, [sample.told.prompt for sample in samples])


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
