"""What a request will take, before anything is loaded: from the checkpoint's files, and from what was made here."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radial.checkpoints import checkpoint_folder, spec_in
from radial.downloads import cached_folder
from radial.errors import RadialError
from radial.models import find_model
from radial.request import GenerationRequest
from radial_app.store import JobStore

if TYPE_CHECKING:
    from radial.memory import Needs

_MANY_TOKENS = 300_000  # from which a plan takes seconds


@dataclass(frozen=True)
class Estimate:
    """Seconds a video and what of memory, where they can be told; ``density`` is the share of attention computed."""

    seconds: float | None
    needs: Needs | None
    density: float | None


def estimate(request: GenerationRequest, store: JobStore, *, gpu: bool = False) -> Estimate:
    """What one video of a resolved request will take, on a GPU or on the CPU.

    Seconds are the median of clips of the same model, size, steps and attention that were made here. Memory is not
    known before the model's files are here.
    """
    needs = None
    with contextlib.suppress(RadialError):
        needs = find_needs(request, gpu=gpu)
    return Estimate(store.seconds_of(request), needs, _density(request))


def find_needs(request: GenerationRequest, *, gpu: bool) -> Needs | None:
    """What a resolved request needs of memory; None where the model's files are not here yet.

    Raises:
        ModelError: they cannot be read.
    """
    import torch

    from radial.loading import choose_dtype
    from radial.memory import needs_of

    spec = find_model(request.model)
    folder = checkpoint_folder(spec) or cached_folder(spec.source)
    if folder is None:
        return None
    dtype = choose_dtype(request.dtype, torch.device("cuda" if gpu else "cpu"))
    return needs_of(request, spec_in(folder, spec), folder, dtype)


def _density(request: GenerationRequest) -> float | None:
    from radial.plan import BlockPlan

    if request.attention == "dense":
        return 1.0
    spec = find_model(request.model)
    pattern, schedule, block_size = request.radial_settings(spec)
    grid = request.grid(spec)
    if grid.tokens > _MANY_TOKENS:
        return None
    dense = schedule.dense_share(spec.layers, request.num_inference_steps or 1)
    return dense + (1 - dense) * BlockPlan.build(grid, pattern, block_size).density
