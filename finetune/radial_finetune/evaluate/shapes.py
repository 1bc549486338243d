"""How well a model follows prompts of the shapes world, at its native length and beyond.

Held-out prompts go through the real pipeline; OpenCV reads colour, shape and motion from the frames, over the whole
clip. The same measure on ground-truth clips stands beside, as its ceiling.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radial.attention.install import apply, transformers_of
from radial.attention.positions import stretched
from radial.attention.timed_text import timed_text
from radial.errors import GenerationError
from radial.generation.sampler import replaced, scheduler_for
from radial.generation.timed_words import encode_in_time
from radial.loading.load import LoadedModel
from radial.request import GenerationRequest
from radial_finetune.data.clips import Frames
from radial_finetune.evaluate.score import FigureScore, score_clip, use_one_thread
from radial_finetune.world import Scene, describe, draw_scene, render
from radial_finetune.world.render import to_pixels

# Training draws its scenes from small seeds. These clips are new to it; what a lone figure is and does may have
# occurred in training, since there are but 30,000 such combinations.
HELD_OUT_SEED = 20_261_123
MEASURES: dict[str, Callable[[FigureScore], float]] = {
    "colour": lambda score: float(score.colour),
    "shape": lambda score: float(score.shape),
    "motion": lambda score: float(score.motion),
    "prompt": lambda score: float(score.all),
    "whole motion": lambda score: float(score.whole_motion),
    "persistence": lambda score: score.persistence,
    "repetition": lambda score: score.repetition,
}
Scorer = Callable[[Sequence[Frames], Sequence[Scene]], list[tuple[FigureScore, ...]]]


@dataclass(frozen=True)
class Result:
    """Scores of one kind of clips: a value for every prompt and measure, the mean over its figures and seeds."""

    values: dict[str, NDArray[np.float64]]
    misses: tuple[tuple[str, ...], ...] = ()

    def interval(self, measure: str) -> tuple[float, float, float]:
        """Mean over all prompts, and its 95 % confidence interval."""
        return bootstrap(self.values[measure])


def held_out(count: int, figures: Sequence[int] = (1, 2)) -> list[tuple[Scene, str]]:
    """Scenes and their prompts, as many of each number of figures, the same on every machine."""
    members = []
    for number in figures:
        rng = random.Random(HELD_OUT_SEED + number)
        scenes = [draw_scene(rng, number) for _ in range(count)]
        members += [(scene, describe(scene, rng).text) for scene in scenes]
    return members


@contextlib.contextmanager
def scoring_processes(count: int | None = None) -> Iterator[Pool]:
    """Processes that score clips beside each other, one a core and 16 at most when left out."""
    # Fresh processes: a fork would share the GPU's state.
    with multiprocessing.get_context("spawn").Pool(
        count or min(os.cpu_count() or 1, 16), initializer=use_one_thread
    ) as pool:
        yield pool


@contextlib.contextmanager
def scoring(processes: int | None = None) -> Iterator[Scorer]:
    """Scores many clips at a time, in processes of their own."""
    with scoring_processes(processes) as pool:
        yield lambda clips, scenes: pool.starmap(score_clip, list(zip(clips, scenes, strict=True)), chunksize=2)


def score_truth(members: Sequence[tuple[Scene, str]], num_frames: int, score: Scorer) -> Result:
    """The measure's ceiling: clips drawn from the scenes themselves."""
    clips = [to_pixels(render([scene], num_frames)[0]) for scene, _ in members]
    return summarise([score(clips, [scene for scene, _ in members])])


def score_model(
    request: GenerationRequest, model: LoadedModel, members: Sequence[tuple[Scene, str]], score: Scorer,
    seeds: Sequence[int] = (0,), batch_size: int = 8, on_clips: Callable[[int, list[Frames]], None] = lambda s, c: None,
) -> Result:  # fmt: skip
    """What a model makes of the prompts, under a resolved request's settings; each prompt once a seed."""
    scores = []
    for seed in seeds:
        clips = generate_clips(request, model, [text for _, text in members], batch_size, 10_000 * seed)
        on_clips(seed, clips)
        scores.append(score(clips, [scene for scene, _ in members]))
    return summarise(scores)


def generate_clips(
    request: GenerationRequest, model: LoadedModel, prompts: Sequence[str | tuple[str, ...]], batch_size: int,
    first_seed: int = 0,
) -> list[Frames]:  # fmt: skip
    """Clips of many prompts through the pipeline, several at a time, seeds counting up.

    They are alike, so a batch is a pack of them, without a token of padding: ``generate_together`` makes the same
    clips. What it does for each by itself, words and decoding, a batch does for all: it took 0.56 times as long (the
    bundled model, 4 clips of 17 frames, 2 steps, seconds of one thread, 28 November 2026).

    Args:
        prompts: of each clip one, or of each clip as many that follow one another.
    """
    attention, length = request.attention_settings, model.spec.max_sequence_length
    clips: list[Frames] = []
    for start in range(0, len(prompts), batch_size):
        part = [(one,) if isinstance(one, str) else one for one in prompts[start : start + batch_size]]
        with contextlib.ExitStack() as stack:
            scheduler = scheduler_for(model.pipe, request.sampler or "model", request.flow_shift)
            stack.enter_context(replaced(model.pipe, scheduler=scheduler))
            if attention.kind == "radial":
                stack.enter_context(apply(model.pipe, **attention.as_arguments()))
            if (kind := request.stretched_positions) is not None:
                period = model.spec.riflex_period
                stack.enter_context(stretched(transformers_of(model.pipe), kind, model.spec.native_latents, period))
            stack.enter_context(torch.inference_mode())
            words: dict[str, Any] = {
                "prompt": [one[0] for one in part], "negative_prompt": [request.negative_prompt or ""] * len(part),
                "max_sequence_length": length,
            }  # fmt: skip
            if len(part[0]) > 1:
                stack.enter_context(timed_text(transformers_of(model.pipe), length, model.spec.stride[0]))
                guided = request.is_guided(model.spec)
                words = encode_in_time(model.pipe, part, request.negative_prompt or "", length, guided=guided)
            frames = model.pipe(
                **words,
                height=request.height,
                width=request.width,
                num_frames=request.num_frames,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(first_seed + start + i) for i in range(len(part))],
                output_type="np",
            ).frames
        if not np.isfinite(frames).all():
            raise GenerationError("the decoded frames are not all numbers; try --dtype float32")
        clips += [(clip * 255).round().clip(0, 255).astype(np.uint8) for clip in frames]
    return clips


def summarise(scores: Sequence[list[tuple[FigureScore, ...]]]) -> Result:
    """Scores of the same prompts under several seeds, as means over figures and seeds."""
    values = {
        name: np.array([[np.mean([read(figure) for figure in clip]) for clip in seed] for seed in scores]).mean(0)
        for name, read in MEASURES.items()
    }
    values["whole clip"] = np.array([[all(f.all for f in clip) for clip in seed] for seed in scores]).mean(0)
    misses = tuple(figure.seen for seed in scores for clip in seed for figure in clip if not figure.all)
    return Result(values, misses[:200])


def join(results: Sequence[Result]) -> Result:
    """Results of the same prompts from several models that were tuned alike."""
    return Result({name: np.mean([r.values[name] for r in results], axis=0) for name in results[0].values})


def bootstrap(values: NDArray[np.float64], samples: int = 4000) -> tuple[float, float, float]:
    """Mean, and the 95 % interval of the means of as many values drawn with repetition."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (samples, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def to_markdown(results: dict[str, Result], measures: Sequence[str]) -> str:
    """A table of means with their intervals, in percent."""
    lines = [f"| clips | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for name, result in results.items():
        cells = []
        for measure in measures:
            mean, low, high = result.interval(measure)
            cells.append(f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
