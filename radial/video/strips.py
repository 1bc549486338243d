"""Frames cut into strips that overlap, and put together again with blended seams.

Shapes: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
