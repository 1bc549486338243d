"""How well a model follows what steers it, against the truth of the shapes world.

Held-out clips of the world and what steers them go through the real pipeline, as the app gives them to it; OpenCV
reads figure, colour and path from the frames. The same measures on the true clips, and on those through the autoencoder
alone, stand beside as their ceilings.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from radial.attention.install import apply
from radial.errors import GenerationError
from radial.generation.conditions.controls import vace_arguments
from radial.generation.sampler import replaced, scheduler_for
from radial.loading.load import LoadedModel
from radial.request import GenerationRequest
from radial.video.encoding import Frames
from radial.video.masks.kept import Kept
from radial_finetune.evaluate.score import Sighting, find_figure, fit_templates, nearest_colour, shape_of
from radial_finetune.evaluate.shapes import HELD_OUT_SEED, bootstrap
from radial_finetune.world.render import tracks
from radial_finetune.world.scene import Figure, draw_scene
from radial_finetune.world.steered import SIGNALS, Steered, caption, dig, draw_steered, draw_track, show

MOST_DECIBELS = 99.0  # of frames that are the same
_GROUND = np.uint8(128)  # grey, as no figure is
_LOST = 1.0  # shorter sides that a path is off in a frame without its figure


def _signal(rng: random.Random, task: str) -> Steered:
    return replace(_on_a_path(rng), task=task)


def _on_a_path(rng: random.Random, *, named: bool = True) -> Steered:
    """A figure on a way that no word says."""
    drawn = draw_steered(rng, "text", referenced=True)
    (figure,) = drawn.scene.figures
    scene = replace(drawn.scene, figures=(replace(figure, motion="rest"),))
    truth = (draw_track(rng, figure, drawn.num_frames, drawn.side),)
    return replace(drawn, scene=scene, truth=truth, prompt=caption(scene, rng, named=named, moving=False), picture=None)


def _masked(rng: random.Random, figures: int) -> Steered:
    """A clip whose figure is made anew in a box about its way, or one of two in its half of the frame."""
    scene = draw_scene(rng, figures)
    drawn = Steered(scene, tracks(scene, 33, 128, 128), caption(scene, rng), "inpaint", 33, 128)
    return dig(drawn, rng, "part" if figures == 2 else "swept")


def _given_frames(rng: random.Random, frames: tuple[int, ...]) -> Steered:
    """Frames of a clip, which alone say what its figure looks like."""
    drawn = draw_steered(rng, "text", referenced=True)
    return replace(drawn, prompt=caption(drawn.scene, rng, named=False), keyframes=frames, picture=None)


def _pictured(rng: random.Random) -> Steered:
    """A picture of a figure, which alone says what it looks like, and its path."""
    return show(replace(_on_a_path(rng, named=False), task="path"), rng)


TASKS: dict[str, Callable[[random.Random], Steered]] = {
    **{name: functools.partial(_signal, task=name) for name in SIGNALS},
    "inpaint": functools.partial(_masked, figures=1),
    "inpaint one of two": functools.partial(_masked, figures=2),
    "first frame": lambda rng: _given_frames(rng, (0,)),
    "middle frames": lambda rng: _given_frames(rng, (8, 24)),
    "reference": _pictured,
}


@dataclass(frozen=True)
class ControlScore:
    """What came of one clip; None for what its task does not decide.

    Attributes:
        figure, colour: whether the figures that are to appear have their shape, and their colour.
        path: mean distance of the figure from where it should be, in shorter sides; in a frame without it, a whole one.
        filled: share of frames in whose hole there is a figure of the right colour.
        untouched: PSNR of what was given, a part of each frame or some whole frames, in dB.
    """

    figure: bool
    colour: bool
    path: float | None = None
    filled: float | None = None
    untouched: float | None = None


def held_out_controls(task: str, count: int) -> list[Steered]:
    """Clips that are steered in one way, the same on every machine and none of those that training draws."""
    rng = random.Random(f"{HELD_OUT_SEED} {task}")
    return [TASKS[task](rng) for _ in range(count)]


def score_control(frames_THWC: Frames, drawn: Steered) -> ControlScore:
    """Score a clip against the one it should have become."""
    truth_THWC, hole_THW = drawn.frames(), drawn.hole()
    looked_THWC = frames_THWC if hole_THW is None else np.where(hole_THW[..., None], frames_THWC, _GROUND)
    figure = colour = True
    away, coloured = [], []
    for number in _judged(drawn):
        part = _part_of(drawn, number)
        seen, wanted = find_figure(looked_THWC, part, share=0.0), find_figure(truth_THWC, part, share=0.0)
        asked = drawn.scene.figures[number]
        figure &= seen is not None and shape_of(seen, fit_templates(seen.outlines)) == asked.shape
        colour &= seen is not None and nearest_colour(seen.colour) == asked.colour
        away.append(_distance(seen, wanted))
        coloured.append(_coloured(seen, asked, drawn.num_frames))
    given_THW = np.zeros(frames_THWC.shape[:3], bool) if hole_THW is None else ~hole_THW
    given_THW[list(drawn.keyframes)] = True
    return ControlScore(
        figure, colour,
        path=float(np.mean(away)) if drawn.task in SIGNALS else None,
        filled=None if hole_THW is None else float(np.mean(coloured)),
        untouched=decibels(frames_THWC, truth_THWC, given_THW) if given_THW.any() else None,
    )  # fmt: skip


def decibels(one_THWC: Frames, other_THWC: Frames, where_THW: NDArray[np.bool_]) -> float:
    """PSNR of two clips, in dB, over a part of them."""
    error = np.square(one_THWC[where_THW].astype(np.float64) - other_THWC[where_THW]).mean()
    return float(MOST_DECIBELS if error == 0 else min(MOST_DECIBELS, 10 * np.log10(255**2 / error)))


def make_controlled(request: GenerationRequest, model: LoadedModel, members: Sequence[Steered]) -> list[Frames]:
    """Clips of a model as it is steered, under a resolved request's settings, seeds counting up; what lies outside a
    hole is put back where the request keeps it, as in any clip.

    Raises:
        GenerationError: what is decoded are no numbers.
    """
    attention = request.attention_settings
    clips: list[Frames] = []
    for number, drawn in enumerate(members):
        with contextlib.ExitStack() as stack:
            scheduler = scheduler_for(model.pipe, request.sampler or "model", request.flow_shift)
            stack.enter_context(replaced(model.pipe, scheduler=scheduler))
            if attention.kind == "radial":
                stack.enter_context(apply(model.pipe, **attention.as_arguments()))
            stack.enter_context(torch.inference_mode())
            (frames,) = model.pipe(
                prompt=drawn.prompt, negative_prompt=request.negative_prompt or "",
                max_sequence_length=model.spec.max_sequence_length, height=drawn.side, width=drawn.side,
                num_frames=drawn.num_frames, num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale, generator=torch.Generator("cpu").manual_seed(number),
                output_type="np", **arguments_of(drawn),
            ).frames  # fmt: skip
        if not np.isfinite(frames).all():
            raise GenerationError("the decoded frames are not all numbers; try --dtype float32")
        pixels = (frames * 255).round().clip(0, 255).astype(np.uint8)
        hole_THW = drawn.hole()
        kept = None if hole_THW is None or not request.keep_unmasked else Kept(drawn.frames(), hole_THW)
        clips.append(pixels if kept is None else kept.put_back(pixels))
    return clips


def arguments_of(drawn: Steered) -> dict[str, Any]:
    """What a pipeline of VACE is given of what steers a clip, by the app's own rules."""
    truth, hole_THW, reference = drawn.frames(), drawn.hole(), drawn.reference()
    keyed = {frame: Image.fromarray(truth[frame]) for frame in drawn.keyframes}
    control = truth if hole_THW is not None else drawn.signal()
    arguments = vace_arguments((drawn.side, drawn.side, drawn.num_frames), control, hole_THW, keyed)
    return arguments | ({} if reference is None else {"reference_images": [Image.fromarray(reference)]})


def shown(drawn: Steered) -> Frames:
    """What a model is shown of a clip, grey where it makes it anew; a picture of the figure first."""
    arguments = arguments_of(drawn)
    return np.stack([np.asarray(one) for one in (*arguments.get("reference_images", ()), *arguments["video"])])


def through_autoencoder(model: LoadedModel, members: Sequence[Steered]) -> list[Frames]:
    """The true clips as the model's autoencoder gives them back: more than it keeps nothing can keep."""
    vae, clips = model.pipe.vae, []
    for drawn in members:
        pixels = torch.from_numpy(drawn.frames()).to(vae.device, vae.dtype) / 127.5 - 1
        with torch.inference_mode():
            decoded = vae.decode(vae.encode(pixels.permute(3, 0, 1, 2)[None]).latent_dist.mode()).sample[0]
        kept = ((decoded.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0)
        clips.append(kept.cpu().numpy())
    return clips


def summarise_controls(scores: Sequence[ControlScore]) -> dict[str, tuple[float, float, float]]:
    """Means and their 95 % intervals: shares from 0 to 1, lengths in sides, decibels."""
    found = {}
    for name in ControlScore.__dataclass_fields__:
        values = [float(value) for score in scores if (value := getattr(score, name)) is not None]
        if values:
            found[name] = bootstrap(np.array(values))
    return found


def to_markdown(results: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """A table of means with their intervals: shares in percent, lengths in sides, decibels."""
    units = {"figure": 100, "colour": 100, "path": 1, "filled": 100, "untouched": 1}
    heads = ("figure, %", "colour, %", "path, sides", "filled, %", "untouched, dB")
    lines = [f"| clips | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, result in results.items():
        cells = []
        for measure, unit in units.items():
            digits = 3 if measure == "path" else 1
            values = [f"{unit * value:.{digits}f}" for value in result.get(measure, ())]
            cells.append(f"{values[0]} ({values[1]} to {values[2]})" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _judged(drawn: Steered) -> tuple[int, ...]:
    """The figures that are made: all, but where a hole holds one of two."""
    everyone = tuple(range(len(drawn.truth)))
    if drawn.hole_T4 is None or len(everyone) == 1:
        return everyone
    regions = [np.array(figure.region) * drawn.side for figure in drawn.scene.figures]
    return tuple(number for number in everyone if np.allclose(drawn.hole_T4[0], regions[number]))


def _part_of(drawn: Steered, number: int) -> tuple[slice, slice]:
    """Where a figure is looked for: in its half of the frame, or in all of it."""
    left, top, right, bottom = (round(value * drawn.side) for value in drawn.scene.figures[number].region)
    return slice(top, bottom), slice(left, right)


def _distance(seen: Sighting | None, wanted: Sighting | None) -> float:
    """Mean distance of centres over the frames of which the truth shows one."""
    assert wanted is not None, "the world shows every figure"
    places = {} if seen is None else dict(zip(seen.frames.tolist(), seen.centres, strict=True))
    away = [
        float(np.linalg.norm(places[frame] - centre)) if frame in places else _LOST
        for frame, centre in zip(wanted.frames.tolist(), wanted.centres, strict=True)
    ]
    return float(np.mean(away))


def _coloured(seen: Sighting | None, asked: Figure, count: int) -> float:
    colours = [] if seen is None else [nearest_colour(colour) for colour in seen.colours]
    return sum(colour == asked.colour for colour in colours) / count
