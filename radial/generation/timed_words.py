"""Prompts that follow one another within a clip, as a pipeline takes them: encoded one by one, laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def encode_in_time(
    pipe: Any, prompts: Sequence[Sequence[str]], negative_prompt: str, max_sequence_length: int, *, guided: bool
) -> dict[str, Tensor]:
    """Arguments of a pipeline whose cross-attention reads each text at its time (:mod:`radial.attention.timed_text`).

    Args:
        prompts: of each clip; as many for one as for another.
        guided: whether there is a pass with the words to avoid, too; they are the same all the time.
    """
    texts = len(prompts[0])
    told = [prompt for one in prompts for prompt in one]
    embeds, negative = pipe.encode_prompt(
        told, [negative_prompt] * len(told), do_classifier_free_guidance=guided,
        max_sequence_length=max_sequence_length, device=pipe._execution_device,
    )  # fmt: skip
    found = {"prompt_embeds": embeds} | ({"negative_prompt_embeds": negative} if guided else {})
    return {name: value.unflatten(0, (-1, texts)).flatten(1, 2) for name, value in found.items()}
