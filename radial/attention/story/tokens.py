"""Learned tokens by which a segment of a story is remembered.

A transformer that has them carries them in a module of its own. In a call they stand in a frame's place,
where patches of latents would be, and pass through the same layers as these; what is kept of them is their keys and
values.

Shapes: B stories, M learned tokens, D the transformer's width, F frames of a call, h and w rows and columns of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from radial.errors import ModelError
from radial.plans.story.memory import StoryMemory, spread

HOLDER = "story_memory"  # of a transformer
MEMORY_TOKENS = f"{HOLDER}.tokens"  # among a transformer's tensors, and in an adapter's file


class MemoryTokens(nn.Module):
    """Learned tokens ``[M, D]``. A module, as what a transformer holds itself says what numbers it computes in."""

    tokens: Tensor


def memory_tokens(transformer: Any) -> Tensor | None:
    """A transformer's learned tokens, ``[M, D]``; None where it has none."""
    holder = getattr(transformer, HOLDER, None)
    return holder.tokens if isinstance(holder, MemoryTokens) else None


def hold_tokens(transformer: nn.Module, tokens_MD: Tensor) -> None:
    """Give a transformer learned tokens that an adapter brings.

    Raises:
        ModelError: it has some, of another adapter.
    """
    if memory_tokens(transformer) is not None:
        raise ModelError("two adapters bring learned tokens of memory, and a story has those of one: leave one out")
    holder = MemoryTokens()
    holder.register_buffer("tokens", tokens_MD.to(next(transformer.parameters()).device), persistent=False)
    transformer.add_module(HOLDER, holder)


def train_tokens(transformer: nn.Module, count: int) -> None:
    """Give a transformer learned tokens to be trained, float32, drawn as large as embedded latents are."""
    embedding: Any = transformer.get_submodule("patch_embedding")
    weight = embedding.weight
    scale = weight.detach().float().square().flatten(1).sum(1).mean().sqrt()
    holder = MemoryTokens()
    drawn = torch.randn(count, len(weight)).to(weight.device) * scale
    holder.register_parameter("tokens", nn.Parameter(drawn))
    transformer.add_module(HOLDER, holder)


def check_tokens(transformer: Any, memory: StoryMemory) -> None:
    """Make sure that a transformer has the learned tokens that a memory is of.

    Raises:
        ModelError: it has not.
    """
    if memory.kind != "learned":
        return
    tokens = memory_tokens(transformer)
    if tokens is None:
        raise ModelError("the memory is learned, and no adapter brings its tokens: take one that was tuned with "
                         'kind = "learned", or another memory')  # fmt: skip
    if len(tokens) != memory.memory_tokens:
        raise ModelError(f"the adapter brings {len(tokens)} learned tokens, and a memory of {memory.memory_tokens} is "
                         "wanted: leave memory_tokens as it was tuned")  # fmt: skip


def put_tokens(embedded_BFDhw: Tensor, tokens_MD: Tensor, frames: range) -> Tensor:
    """Embedded latents, ``[B, F, D, h, w]``, with learned tokens, and zeros between them, in the place of some frames.

    Raises:
        RequestError: a frame has fewer tokens.
    """
    stories, _, width, height, columns = embedded_BFDhw.shape
    places = torch.tensor(spread(height, columns, len(tokens_MD)), device=embedded_BFDhw.device)
    frame = embedded_BFDhw.new_zeros(height * columns, width)
    frame = frame.index_copy(0, places, tokens_MD.to(frame)).T.unflatten(1, (height, columns))
    own = frame.expand(stories, len(frames), -1, -1, -1)
    return torch.cat([embedded_BFDhw[:, : frames.start], own, embedded_BFDhw[:, frames.stop :]], 1)
