"""A Wan transformer called on latent frames that each have a noise level and a text of their own.

Every frame is a batch entry of the stock forward, with its own timestep; only attention looks beyond it. The stock
rotation of a clip of one frame turns keys and queries by their place in the frame alone, so that what self-attention is
given here is not yet turned along time: :func:`turn` does that, at whatever distance a frame is to have.

Shapes: B stories, C channels, F latent frames, H and W latent rows and columns, P tokens of a frame, S = F P tokens,
N texts, L tokens of a text, D head dim or the text's width, G heads.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from radial.attention.families.find import find_family
from radial.attention.family import patch_sizes
from radial.attention.processors import AttentionCall, RadialProcessors
from radial.attention.story.tokens import memory_tokens, put_tokens
from radial.attention.timed_text import cross_attentions
from radial.errors import ModelError


class FrameAttention(Protocol):
    """Self-attention over frames, ``[B, S, G, D]``, whose queries and keys are not turned along time."""

    def __call__(self, layer: int, q_BSGD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, /) -> Tensor: ...


class Framewise:
    """A transformer's call, frame by frame. Use it as a context manager, or call :meth:`close`.

    Args:
        transformer: diffusers' ``WanTransformer3DModel``, from text alone.
        with_layers: whether attention asks for the number of its layer; without, compiled blocks compile once.

    Raises:
        ModelError: it is another model.
    """

    def __init__(self, transformer: Any, *, with_layers: bool = True) -> None:
        check_framewise(transformer)
        self.transformer = transformer
        self._attention: FrameAttention | None = None
        self._layer = 0
        self._stories, self._frames, self._texts = 1, 1, 1
        self._runs: list[tuple[Tensor, Tensor]] = []
        self._places: Tensor | None = None
        self._learned = range(0)
        family = find_family(transformer)
        reads = (True,) if with_layers else ()
        own = RadialProcessors(self._attend_to_frames, reads, self._enter, dense_too=not with_layers)
        text = RadialProcessors(self._attend_to_text, (), self._enter, dense_too=True)
        with contextlib.ExitStack() as undo:
            for layer, attention in family.self_attentions(transformer):
                undo.callback(setattr, attention, "processor", attention.processor)
                processor = own.make(attention.processor, layer)
                processor.radial_choice = int(with_layers)
                setattr(attention, "processor", processor)  # noqa: B010  to mypy a module has none
            for attention in cross_attentions(transformer, family):
                undo.callback(setattr, attention, "processor", attention.processor)
                attention.processor = text.make(attention.processor, 0)
            undo.callback(transformer.patch_embedding.register_forward_hook(self._put_learned).remove)
            self._undo = undo.pop_all()

    def __call__(
        self, latents_BCFHW: Tensor, timestep_BF: Tensor, text_BNLD: Tensor, text_of_frame: Sequence[int],
        attention: FrameAttention, learned: range = range(0),
    ) -> Tensor:  # fmt: skip
        """What the transformer predicts of each frame, ``[B, C, F, H, W]``.

        Args:
            timestep_BF: of each frame, 0 for a clean one.
            text_of_frame: which of the texts each frame reads.
            attention: kept until the next call, as a backward pass may compute blocks once more.
            learned: frames that are the transformer's learned tokens, whatever their latents are.
        """
        batch, _, frames = latents_BCFHW.shape[:3]
        self._attention, self._stories, self._frames, self._texts = attention, batch, frames, text_BNLD.shape[1]
        self._begin_texts(text_of_frame, latents_BCFHW.device)
        self._learned = learned
        alone = latents_BCFHW.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        (predicted,) = self.transformer(
            hidden_states=alone, timestep=timestep_BF.flatten(), encoder_hidden_states=text_BNLD.flatten(1, 2),
            return_dict=False,
        )  # fmt: skip
        return predicted.squeeze(2).unflatten(0, (batch, frames)).transpose(1, 2)

    def close(self) -> None:
        """Put the stock processors back. Calling it twice does no harm."""
        self._undo.close()

    def __enter__(self) -> Framewise:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put_learned(self, embedding: Any, args: Any, embedded: Tensor) -> Tensor:
        if not self._learned:
            return embedded
        tokens = memory_tokens(self.transformer)
        assert tokens is not None
        by_frame = embedded.squeeze(2).unflatten(0, (self._stories, self._frames))
        return put_tokens(by_frame, tokens, self._learned).flatten(0, 1).unsqueeze(2)

    def _enter(self, layer: int) -> None:
        self._layer = layer

    def _attend_to_frames(self, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self._attention is not None
        whole = (x.unflatten(0, (self._stories, self._frames)).flatten(1, 2) for x in (q, k, v))
        out: Tensor = self._attention(self._layer, *whole)
        return out.unflatten(1, (self._frames, -1)).flatten(0, 1)

    def _begin_texts(self, text_of_frame: Sequence[int], device: torch.device) -> None:
        """Runs of frames that read one text, those of one length together."""
        if len(text_of_frame) != self._frames:
            raise ModelError(f"{len(text_of_frame)} texts are named for {self._frames} frames")
        by_length: dict[int, list[tuple[int, int]]] = {}
        place = 0
        for text, run in itertools.groupby(text_of_frame):
            length = len(list(run))
            by_length.setdefault(length, []).append((place, text))
            place += length
        self._runs, order = [], []
        for length, runs in by_length.items():
            frames = [[first + step for step in range(length)] for first, _ in runs]
            order += [frame for run in frames for frame in run]
            texts = torch.tensor([text for _, text in runs], device=device)
            self._runs.append((torch.tensor(frames, device=device), texts))
        inverse = torch.tensor(order, device=device).argsort()
        self._places = None if order == sorted(order) else inverse

    def _attend_to_text(self, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Cross-attention, each frame to its own text: ``q [B F, P, G, D]``, ``k`` and ``v [B, N L, G, D]``."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        q_BFPGD = q.unflatten(0, (self._stories, self._frames))
        tokens = q.shape[1]
        out = []
        for frames, run_texts in self._runs:
            runs, length = frames.shape
            own = q_BFPGD[:, frames.flatten()].reshape(-1, length * tokens, *q.shape[2:])
            told = [x.unflatten(1, (self._texts, -1))[:, run_texts].flatten(0, 1) for x in (k, v)]
            made = dispatch_attention_fn(own, *told, scale=call.scale, backend=call.backend)
            out.append(made.reshape(self._stories, runs * length, tokens, *q.shape[2:]))
        whole = out[0] if len(out) == 1 else torch.cat(out, 1)
        return (whole if self._places is None else whole[:, self._places]).flatten(0, 1)


def check_framewise(transformer: Any) -> None:
    """Raise where a transformer cannot be called frame by frame.

    Raises:
        ModelError: it cannot.
    """
    name = type(transformer).__name__
    if "WanTransformer3DModel" not in (kind.__name__ for kind in type(transformer).__mro__):
        raise ModelError(f"stories are made chunk by chunk by Wan's text-to-video transformers, not by {name}")
    config = transformer.config
    if config.image_dim is not None or config.in_channels != config.out_channels:
        raise ModelError("this Wan starts from an image; stories are made chunk by chunk by its text-to-video models")
    if patch_sizes(config)[0] != 1:
        raise ModelError("this Wan joins latent frames into tokens, which must have one text and noise level each")


class Turning:
    """Rotation along time, in the numbers of the transformer's own table."""

    def __init__(self, transformer: Any) -> None:
        rope = transformer.rope
        self._columns = rope.t_dim
        self._cos = rope.freqs_cos[:, : rope.t_dim : 2]
        self._sin = rope.freqs_sin[:, 1 : rope.t_dim : 2]

    @property
    def places(self) -> int:
        """Places along time that the table has."""
        return len(self._cos)

    def angles(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of tokens at places along time, each ``[S, 1, columns / 2]``, on the places' device."""
        cos, sin = (table.to(places.device)[places][:, None] for table in (self._cos, self._sin))
        return cos, sin

    def turn(self, x_BSGD: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Queries or keys turned to where they are."""
        cos, sin = angles
        even, odd = x_BSGD[..., : self._columns].unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        return torch.cat([turned.type_as(x_BSGD), x_BSGD[..., self._columns :]], -1)
