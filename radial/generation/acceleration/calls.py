"""Where in a run a transformer's call stands: its step, and its branch of guidance.

Counted, not read from timesteps: in 16 bit two of them may be the same number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from radial.errors import GenerationError

Branch = Literal["cond", "uncond", "cond_uncond"]

# How diffusers' pipelines guide a step: by one call of the transformer on a batch of two, without the prompt and with
# it, or by a call with the prompt and then one without it.
BATCHED = {
    "AllegroPipeline", "CogVideoXFunControlPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXPipeline",
    "EasyAnimatePipeline", "LTX2ConditionPipeline", "LTX2ImageToVideoPipeline", "LTX2Pipeline",
    "LTXConditionPipeline",
    "LTXImageToVideoPipeline", "LTXPipeline", "MochiPipeline",
}  # fmt: skip
BY_TWO_CALLS = {
    "CosmosTextToWorldPipeline", "HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo15Pipeline",
    "HunyuanVideoFramepackPipeline", "HunyuanVideoImageToVideoPipeline", "HunyuanVideoPipeline",
    "Kandinsky5I2VPipeline", "Kandinsky5T2VPipeline", "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    "SkyReelsV2DiffusionForcingPipeline", "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Pipeline",
    "WanAnimatePipeline", "WanImageToVideoPipeline", "WanPipeline", "WanVACEPipeline",
}  # fmt: skip


class Calls:
    """Counts the calls of a run's transformers, also those that a run which goes on from a snapshot stands still in.

    Args:
        pipe: the pipeline that makes them.
        steps: of the whole run, or of each of its windows.
        guided: whether the pipeline guides its steps.

    Attributes:
        steps: of the whole run.
        batched: whether a guided step is one call, on a batch of two.

    Raises:
        GenerationError: it is not known how this pipeline guides.
    """

    def __init__(self, pipe: Any, steps: int, *, guided: bool) -> None:
        kind = type(pipe).__name__
        if kind not in BATCHED | BY_TWO_CALLS:
            raise GenerationError(f"how {kind} guides its steps is not known; leave cache and guidance's steps open")
        self.batched = guided and kind in BATCHED
        self.steps, self._a_step = steps, 2 if guided and kind in BY_TWO_CALLS else 1
        self._count = 0

    @property
    def step(self) -> int:
        """That of the last call, from 0."""
        return (self._count - 1) // self._a_step % self.steps

    @property
    def branch(self) -> Branch:
        """What the last call was for."""
        if self.batched:
            return "cond_uncond"
        return "cond" if (self._count - 1) % self._a_step == 0 else "uncond"

    def is_of_both(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is one on a batch of two; LTX-2 makes others for guidances of another kind."""
        return self.batched and len(kwargs.get("hidden_states", args[0] if args else ())) == 2

    @contextlib.contextmanager
    def counted(self, transformers: list[Any]) -> Iterator[None]:
        """Count while the context lasts."""

        def count(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._count += not self.batched or self.is_of_both(args, kwargs)

        hooks = [one.register_forward_pre_hook(count, with_kwargs=True) for one in transformers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
