"""What a request will take, before anything is loaded: from the checkpoint's files, and from what was made here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radial.errors import RadialError, RequestError
from radial.models.find import find_model
from radial.request import GenerationRequest
from radial_app.jobs.rates import seconds_on_h100
from radial_app.jobs.store import JobStore

if TYPE_CHECKING:
    from radial.loading.needs import Needs


@dataclass(frozen=True)
class Estimate:
    """Seconds a video and what of memory, where they can be told.

    Attributes:
        seconds: by clips that were made here.
        seconds_on_h100: by the rates that were measured on one.
        density: the share of attention computed, pairs with means of blocks included.
    """

    seconds: float | None
    seconds_on_h100: float | None
    needs: Needs | None
    density: float | None


def estimate(
    request: GenerationRequest, store: JobStore, *, gpu: bool = False, files: Sequence[str] | None = None
) -> Estimate:
    """What one video of a resolved request will take, on a GPU or on the CPU.

    Seconds are the median of clips of the same model, size, steps, guided steps, attention and cache that were made
    here.

    Args:
        files: of the model on the hub; their headers are looked at where the model is not here and has no name. Without
            them, memory is not known then.
    """
    from radial.loading.devices import number_bytes
    from radial.loading.memory_check import find_weights
    from radial.loading.needs import needs_of

    needs, on_h100, density = None, None, _density(request)
    with contextlib.suppress(RadialError):
        spec, weights = find_weights(request, files)
        if weights is not None:
            needs = needs_of(request, spec, weights, number_bytes(request.dtype, "cuda" if gpu else "cpu"))
            if density is not None and request.cache == "off":  # what a cache leaves out the clip decides
                on_h100 = seconds_on_h100(request, spec, weights, density)
    return Estimate(store.seconds_of(request), on_h100, needs, density)


def _density(request: GenerationRequest) -> float | None:
    if request.attention == "dense":
        return 1.0
    spec = find_model(request.model)
    attention = request.attention_settings
    with contextlib.suppress(RequestError):  # a plan of too many blocks
        shares = attention.shares(request.grid(spec))
        return float(attention.work(shares, spec.layers, request.num_inference_steps or 1).mean())
    return None
