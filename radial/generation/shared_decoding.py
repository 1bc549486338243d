"""Latents into frames by several processes: each decodes a strip, and rank 0 puts the strips together.

Neighbouring strips overlap and are blended there, as diffusers' autoencoders do with their tiles.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, distributed

from radial.attention.context_parallel import peer_failures
from radial.generation.decoding import decoding_by
from radial.generation.ranks import PartDone, Ranks
from radial.video.strips import Strips


@contextlib.contextmanager
def shared_decoding(vae: Any, ranks: Ranks | None) -> Iterator[None]:
    """While the context lasts, an autoencoder decodes on all ranks; those other than 0 are done with that.

    An autoencoder whose latents have no rows and columns of their own decodes on rank 0.
    """
    if vae is None or ranks is None:
        yield
        return
    stock = vae.decode

    @functools.wraps(stock)
    def decode(latents: Tensor, *args: Any, return_dict: bool = True, **options: Any) -> Any:
        ranks.word()
        divisible = latents.ndim == 5 and hasattr(vae, "enable_tiling")
        strips = Strips.of(latents, ranks.size if divisible else 1)
        rank, dtype = ranks.parallel.rank, vae.dtype
        part: Any = None
        if rank < len(strips.starts):
            part = stock(strips.cut(latents, rank).contiguous(), *args, return_dict=False, **options)[0]
            part = part.to(dtype)  # who fell back to the CPU decoded in float32
        ranks.wait()
        if not ranks.is_first:
            if part is not None:
                _send(part.contiguous(), ranks)
            raise PartDone
        frames = strips.join([part, *(_receive(rank, part, ranks) for rank in range(1, len(strips.starts)))])
        return SimpleNamespace(sample=frames) if return_dict else (frames,)

    with decoding_by(vae, decode):
        yield


def _send(part: Tensor, ranks: Ranks) -> None:
    shape = torch.tensor(part.shape, device=ranks.device)
    with peer_failures():
        distributed.send(shape, 0, group=ranks.parallel.group)
        distributed.send(part.to(ranks.device), 0, group=ranks.parallel.group)


def _receive(rank: int, like: Any, ranks: Ranks) -> Tensor:
    shape = torch.empty(like.ndim, dtype=torch.int64, device=ranks.device)
    with peer_failures():
        distributed.recv(shape, rank, group=ranks.parallel.group)
        part = torch.empty(shape.tolist(), dtype=like.dtype, device=ranks.device)
        distributed.recv(part, rank, group=ranks.parallel.group)
    return part.to(like.device)
