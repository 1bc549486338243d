"""Latents into frames by several processes: each decodes a strip, and the first puts the strips together.

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

from radial.attention.context_parallel import noticing_the_dead
from radial.generation.decoding import decoding_by
from radial.generation.ranks import Crew, PartDone
from radial.video.strips import Strips


@contextlib.contextmanager
def shared_decoding(vae: Any, crew: Crew | None) -> Iterator[None]:
    """While the context lasts, an autoencoder decodes with the whole crew, whose followers are done with that.

    An autoencoder whose latents have no rows and columns of their own decodes on the leader.
    """
    if vae is None or crew is None:
        yield
        return
    stock = vae.decode

    @functools.wraps(stock)
    def decode(latents: Tensor, *args: Any, return_dict: bool = True, **options: Any) -> Any:
        crew.word()
        divisible = latents.ndim == 5 and hasattr(vae, "enable_tiling")
        strips = Strips.of(latents, crew.size if divisible else 1)
        rank, dtype = crew.parallel.rank, vae.dtype
        part: Any = None
        if rank < len(strips.starts):
            part = stock(strips.cut(latents, rank).contiguous(), *args, return_dict=False, **options)[0]
            part = part.to(dtype)  # who fell back to the CPU decoded in float32
        crew.wait()
        if not crew.leads:
            if part is not None:
                _send(part.contiguous(), crew)
            raise PartDone
        frames = strips.join([part, *(_receive(rank, part, crew) for rank in range(1, len(strips.starts)))])
        return SimpleNamespace(sample=frames) if return_dict else (frames,)

    with decoding_by(vae, decode):
        yield


def _send(part: Tensor, crew: Crew) -> None:
    shape = torch.tensor(part.shape, device=crew.device)
    with noticing_the_dead():
        distributed.send(shape, 0, group=crew.parallel.group)
        distributed.send(part.to(crew.device), 0, group=crew.parallel.group)


def _receive(rank: int, like: Any, crew: Crew) -> Tensor:
    shape = torch.empty(like.ndim, dtype=torch.int64, device=crew.device)
    with noticing_the_dead():
        distributed.recv(shape, rank, group=crew.parallel.group)
        part = torch.empty(shape.tolist(), dtype=like.dtype, device=crew.device)
        distributed.recv(part, rank, group=crew.parallel.group)
    return part.to(like.device)
