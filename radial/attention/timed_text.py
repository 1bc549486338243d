"""Words that follow one another within a clip: each frame's cross-attention reads the text of its own time, and no
other. All of the clip is one pass, in which self-attention carries the figures over from one text to the next.

Texts lie end to end in what the transformer is told, each at the length that the model pads one to.

Shapes: B batch, S tokens of the clip, T of one text, H heads, D head dim.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from radial.attention.context_parallel import ContextParallel
from radial.attention.families.find import find_family
from radial.attention.family import Family
from radial.attention.processors import AttentionCall, RadialProcessors
from radial.errors import ModelError


def equal_shares(texts: int) -> tuple[float, ...]:
    """When each of so many texts begins, as shares of the clip's time."""
    return tuple(number / texts for number in range(texts))


def first_latents(begins: Sequence[float], latents: int, stride: int) -> tuple[int, ...]:
    """The first latent frame of each text: those whose middle lies in its time.

    Args:
        begins: when each begins, as a share of the clip's time, the first one at 0.
        latents: latent frames of the clip; the first of them is one frame, the others ``stride``.
    """
    frames = (latents - 1) * stride + 1
    middles = [0.0, *((stride * (place - 0.5) + 1) / frames for place in range(1, latents))]
    return tuple(sum(middle < begin for middle in middles) for begin in begins)


@contextlib.contextmanager
def timed_text(
    transformers: Sequence[Any], text_length: int, stride: int, begins: Sequence[float] | None = None,
    parallel: ContextParallel | None = None,
) -> Iterator[None]:  # fmt: skip
    """Have each frame read the text of its time while the context lasts.

    Args:
        text_length: tokens of one text.
        stride: frames to one latent frame.
        begins: when each text begins, as a share of the clip's time; in equal shares when left out, by how many texts
            a call brings. A call with one text is as ever.
        parallel: the processes that share each clip.

    Raises:
        ModelError: the model does not read text by cross-attention alone.
    """
    reading = _Reading(text_length, stride, begins, parallel)
    processors = RadialProcessors(reading.attend, (), lambda layer: None, dense_too=True)
    with contextlib.ExitStack() as undo:
        for transformer in transformers:
            family = find_family(transformer)
            for attention in cross_attentions(transformer, family):
                undo.callback(setattr, attention, "processor", attention.processor)
                attention.processor = processors.make(attention.processor, 0)
            handle = transformer.register_forward_pre_hook(reading.hook(transformer, family), with_kwargs=True)
            undo.callback(handle.remove)
        yield


def cross_attentions(transformer: Any, family: Family) -> list[Any]:
    """The layers by which a clip reads its text.

    Raises:
        ModelError: there are none that read text alone.
    """
    layers = [] if family.cross_attentions is None else family.cross_attentions(transformer)
    if not layers or any(getattr(layer, "add_k_proj", None) is not None for layer in layers):
        why = "text and clip attend together" if not layers else "it reads its start image along with the text"
        raise ModelError(f"{type(transformer).__name__} cannot read another text at another time: {why}")
    return layers


class _Reading:
    """Which tokens of a call read which of its texts."""

    def __init__(
        self, text_length: int, stride: int, begins: Sequence[float] | None, parallel: ContextParallel | None
    ) -> None:
        self._text_length, self._stride, self._begins, self._parallel = text_length, stride, begins, parallel
        self._bounds: tuple[int, ...] = ()  # the first token of each text, and the end of the last

    def hook(self, transformer: Any, family: Any) -> Any:
        signature = inspect.signature(type(transformer).forward)

        @torch.compiler.disable
        def begin_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = signature.bind_partial(module, *args, **kwargs).arguments
            tokens = call["encoder_hidden_states"].shape[1]
            texts, rest = divmod(tokens, self._text_length)
            if rest or not texts or (self._begins is not None and texts != len(self._begins)):
                raise ModelError(f"{tokens} tokens of text are not texts of {self._text_length} tokens each")
            begins = equal_shares(texts) if self._begins is None else self._begins
            grid = family.layouts(module, call)[0].grid
            firsts = first_latents(begins, grid.frames, self._stride)
            if len(set(firsts)) < texts:
                raise ModelError(f"{texts} texts are too many for a clip of {grid.frames} latent frames")
            a_frame = grid.tokens // grid.frames
            self._bounds = (*(first * a_frame for first in firsts), grid.tokens)

        return begin_call

    def attend(self, call: AttentionCall, q_BSHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor) -> Tensor:
        """Cross-attention, each run of tokens to the text of its time."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        if call.mask is not None:
            raise ModelError(f"the attention of {call.processor} to text has a mask, which timed words do not know")
        bounds, start = self._bounds, 0
        if self._parallel is not None:  # this process holds a run of the tokens
            shares = self._parallel.shares(bounds[-1])
            start = sum(shares[: self._parallel.rank])
        out = []
        for number, (first, end) in enumerate(pairwise(bounds)):
            q = q_BSHD[:, max(0, first - start) : max(0, end - start)]
            if q.shape[1] == 0:
                continue
            text = slice(number * self._text_length, (number + 1) * self._text_length)
            k, v = k_BTHD[:, text], v_BTHD[:, text]
            out.append(dispatch_attention_fn(q, k, v, scale=call.scale, backend=call.backend))
        return out[0] if len(out) == 1 else torch.cat(out, 1)
