"""The processes of a run: one, or several that ``accelerate launch`` started, with whole copies of the model or with
its weights spread over them (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from radial.attention.context_parallel import ContextParallel
from radial.errors import RequestError
from radial.loading.load import choose_device


class Processes:
    """What a run needs of the other processes. Alone, every method does nothing.

    Those that share clips each compute the whole loss and a part of its gradients, so that a plain mean over all
    processes is right whoever shares what.
    """

    def __init__(self, device: str, ulysses_degree: int = 1) -> None:
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 or os.environ.get("ACCELERATE_USE_FSDP") == "true":
            from accelerate import Accelerator, InitProcessGroupKwargs

            # One process makes the samples while the others wait for it.
            patient = InitProcessGroupKwargs(timeout=timedelta(hours=6))
            self._accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patient])
            if self.sharded and not self._accelerator.is_fsdp2:
                raise RequestError("FSDP runs here in its second version: pass --fsdp_version 2 to accelerate launch")
        if self.count % ulysses_degree:
            raise RequestError(
                f"ulysses_degree {ulysses_degree} does not divide the {self.count} processes of this run; start "
                "torchrun or accelerate launch with a multiple of it"
            )
        self.parallel = self._share_clips(ulysses_degree)
        self.device = choose_device(device)
        if self._accelerator is not None:
            self.device = choose_device("cpu") if self._accelerator.device.type == "cpu" else self._accelerator.device

    @property
    def rank(self) -> int:
        return 0 if self._accelerator is None else int(self._accelerator.process_index)

    @property
    def count(self) -> int:
        return 1 if self._accelerator is None else int(self._accelerator.num_processes)

    @property
    def place(self) -> tuple[int, int]:
        """Which clips of a batch this process works on: the number of its set of processes, and how many there are."""
        sharing = 1 if self.parallel is None else self.parallel.size
        return self.rank // sharing, self.count // sharing

    def _share_clips(self, degree: int) -> ContextParallel | None:
        """The processes that share this one's clips: sets of neighbours, as the fastest links are between those."""
        if degree == 1:
            return None
        first = self.rank - self.rank % degree
        groups = {
            start: torch.distributed.new_group(range(start, start + degree)) for start in range(0, self.count, degree)
        }
        return ContextParallel.over(groups[first])

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether the weights are spread over the processes."""
        return self._accelerator is not None and str(self._accelerator.distributed_type).endswith("FSDP")

    def spread(self, transformer: Any) -> Any:
        """The transformer, its weights spread over the processes where that was asked for."""
        return self._accelerator.prepare(transformer) if self.sharded else transformer

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """The mean of every process's gradients. FSDP does it by itself."""
        if self.count == 1 or self.sharded:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self._mean(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.count == 1:
            return value
        return float(self._mean(torch.tensor(value, device=self.device)))

    def _mean(self, values: Tensor) -> Tensor:
        # Not accelerate's reduce: over processes on the CPU it divides without having added.
        torch.distributed.all_reduce(values)
        return values / self.count

    def wait(self) -> None:
        """Until every process has come here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values in one piece, where they are spread over processes; all of them must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def put(values: Tensor, target: Tensor) -> None:
    """Copy whole values into a tensor, or into this process's part of it."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements)  # type: ignore[attr-defined]
    with torch.no_grad():
        target.copy_(values)
