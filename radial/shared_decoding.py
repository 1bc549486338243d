"""Latents into frames by several processes: each decodes a strip, and the first puts the strips together.

Neighbouring strips overlap and are blended there, as diffusers' autoencoders do with their tiles.

Shapes: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, distributed

from radial.context_parallel import noticing_the_dead
from radial.crew import Crew, PartDone
from radial.decoding import decoding_by

_OVERLAP = 8  # latents that two strips share


@dataclass(frozen=True)
class Strips:
    """How latents are cut: along rows or columns, whichever are more, into near-equal strips that overlap.

    Attributes:
        dim: of the tensor that is cut, from its end.
        starts: of the strips, in latents; each reaches so many beyond the next one's start as two strips share.
    """

    dim: int
    starts: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, latents_BCTHW: Tensor, count: int) -> Strips:
        """As many strips as processes, or fewer, so that each is at least twice as wide as what it shares."""
        height, width = latents_BCTHW.shape[-2:]
        return cls.cut_into(height, count, -2) if height > width else cls.cut_into(width, count, -1)

    @classmethod
    def cut_into(cls, size: int, count: int, dim: int = -1) -> Strips:
        """The same of so many rows or columns."""
        count = max(1, min(count, size // (2 * _OVERLAP)))
        return cls(dim, tuple(size * index // count for index in range(count)), size)

    @property
    def widest(self) -> float:
        """The share of the whole that the widest strip is."""
        ends = [*(start + _OVERLAP for start in self.starts[1:]), self.size]
        return max(end - start for start, end in zip(self.starts, ends, strict=True)) / self.size

    def cut(self, latents_BCTHW: Tensor, index: int) -> Tensor:
        """The latents of one strip."""
        end = self.starts[index + 1] + _OVERLAP if index + 1 < len(self.starts) else self.size
        start = self.starts[index]
        return latents_BCTHW.narrow(self.dim, start, min(end, self.size) - start)

    def join(self, parts: list[Tensor]) -> Tensor:
        """The whole of what the strips were decoded to."""
        if len(parts) == 1:
            return parts[0]
        # Pixels to a latent, from the last strip, which reaches to the end.
        pixels = parts[-1].shape[self.dim] // (self.size - self.starts[-1])
        shared = _OVERLAP * pixels
        ends = [*self.starts[1:], self.size]
        joined = []
        for index, part in enumerate(parts):
            if index:
                before = parts[index - 1]
                ramp = torch.linspace(0, 1, shared + 1, device=part.device, dtype=part.dtype)[:-1]
                ramp = ramp.view(-1, *[1] * (-1 - self.dim))
                tail = before.narrow(self.dim, before.shape[self.dim] - shared, shared)
                head = part.narrow(self.dim, 0, shared)
                head.copy_(tail * (1 - ramp) + head * ramp)
            joined.append(part.narrow(self.dim, 0, (ends[index] - self.starts[index]) * pixels))
        return torch.cat(joined, self.dim)


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
