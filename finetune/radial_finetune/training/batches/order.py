"""In which order clips come, and batches that are read ahead of their step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_Read = TypeVar("_Read")


def read_ahead(read: Callable[[int], _Read], first: int, end: int) -> Generator[_Read]:
    """What is read from number ``first`` to ``end``, each one while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[_Read] | None = None
        try:
            for number in range(first, end):
                batch = ahead.result() if ahead is not None else read(number)
                ahead = pool.submit(read, number + 1) if number + 1 < end else None
                yield batch
        finally:
            if ahead is not None:
                ahead.cancel()


@functools.lru_cache(maxsize=64)
def order_of(seed: int, epoch: int, count: int) -> list[int]:
    """Every clip once an epoch, each epoch in an order of its own."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch)).tolist()
    return order
