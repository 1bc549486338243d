"""Prompts that follow one another within a clip: when each of them begins."""

from __future__ import annotations

import re
from collections.abc import Sequence

from radial.errors import RequestError
from radial.models.spec import ModelSpec
from radial.models.table import MODELS

# Pipelines whose transformers read text by cross-attention alone, and take it encoded.
TIMED_PROMPTS = {"WanPipeline", "WanImageToVideoPipeline", "SkyReelsV2Pipeline"}
MAX_PROMPTS = 64
_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*s\s*:\s*(.*)", re.DOTALL)


def split_time(text: str) -> tuple[float | None, str]:
    """``"3.5s: a red square rises"`` as 3.5 and the prompt; without a time, None and the whole."""
    match = _TIME.fullmatch(text)
    return (float(match[1]), match[2]) if match else (None, text)


def begins_of(then: Sequence[str], seconds: float) -> tuple[float, ...]:
    """When the prompts of a clip begin, as shares of its time: as they say, or in equal shares.

    Raises:
        RequestError: some say when and some do not, or they do not follow each other within the clip.
    """
    times = [split_time(text)[0] for text in then]
    known = [time for time in times if time is not None]
    if not known:
        return tuple(number / (1 + len(then)) for number in range(1 + len(then)))
    if len(known) < len(times):
        open_one = then[times.index(None)]
        raise RequestError(f'then: some prompts say when they begin, and this one does not: "{open_one[:60]}"')
    for before, time in zip([0.0, *known], known, strict=False):
        if not before < time < seconds:
            raise RequestError(
                f"then: a prompt cannot begin at {time:g} s, where the one before begins at {before:g} s and the clip "
                f"ends at {seconds:g} s"
            )
    return (0.0, *(time / seconds for time in known))


def knows_timed_prompts(spec: ModelSpec) -> bool:
    """Whether a model can read another prompt at another time, from text or from an image."""
    # Wan 2.1, which starts from images alone and has one transformer, reads its image along with the text.
    with_text = spec.text_pipeline is None and not spec.has_two_transformers
    return not with_text and bool({spec.text_pipeline, spec.image_pipeline} & TIMED_PROMPTS)


def check_timed(then: Sequence[str], spec: ModelSpec, num_frames: int, fps: int, pipeline: str | None) -> None:
    """Raise RequestError where a model cannot read another prompt at another time, or a clip has not the room."""
    if not then:
        return
    if pipeline not in TIMED_PROMPTS or not knows_timed_prompts(spec):
        able = ", ".join(one.name for one in MODELS.values() if knows_timed_prompts(one))
        raise RequestError(f"{spec.name} cannot read another prompt at another time; models that can: {able}")
    begins = begins_of(then, num_frames / fps)
    shortest = min(end - begin for begin, end in zip(begins, (*begins[1:], 1.0), strict=True))
    if shortest * spec.latent_frames(num_frames) < 1.5:
        raise RequestError(
            f"then: {1 + len(then)} prompts have no room in {num_frames} frames: each needs {2 * spec.stride[0]}"
        )
