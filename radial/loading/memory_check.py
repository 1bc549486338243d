"""Whether a machine has the memory for a request, asked before it waits in a queue or anything is downloaded for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from radial.errors import ModelError, RequestError
from radial.loading.devices import find_device, gpu_memory, number_bytes
from radial.loading.needs import Needs, fit_profile, needs_of
from radial.models.architecture import named_weights
from radial.models.checkpoint import checkpoint_folder, spec_in
from radial.models.find import find_model
from radial.models.hub.download import cached_folder, is_whole
from radial.models.spec import ModelSpec
from radial.models.weights import Weights, weights_in, weights_on_hub
from radial.request import GenerationRequest


def find_weights(request: GenerationRequest, files: Sequence[str] | None = None) -> tuple[ModelSpec, Weights | None]:
    """The spec of a resolved request's model by its files, and its weights; None where they are not here, the model has
    no name, and ``files`` does not name them.

    Args:
        files: of the model on the hub, whose headers may be looked at.

    Raises:
        RequestError: there is no such model.
        ModelError: they cannot be read.
    """
    spec = find_model(request.model)
    folder = checkpoint_folder(spec) or cached_folder(spec.source)
    if folder is not None and is_whole(folder, spec.own_components):
        return spec_in(folder, spec), weights_in(folder, spec.own_weights)
    known = named_weights(spec)
    if known is not None or files is None:
        return spec, known
    return spec, weights_on_hub(spec.source, files, spec.own_weights)


def check_all_fit(requests: Iterable[GenerationRequest]) -> None:
    """As :func:`check_fits` of each, alike ones once.

    Raises:
        RequestError: one does not fit.
    """
    alike: dict[str, GenerationRequest] = {}
    for request in requests:
        own = {"prompt", "then", "negative_prompt", "seed", "num_videos", "num_inference_steps", "fps"}
        alike.setdefault(request.model_dump_json(exclude=own), request)
    for request in alike.values():
        check_fits(request)


def check_fits(request: GenerationRequest, processes: int = 1) -> None:
    """Refuse a resolved request that this machine cannot make, however empty it is; not where ``RADIAL_FORCE`` is set,
    as it is to be where other machines render.

    Raises:
        RequestError: it cannot; what would fit is named.
    """
    if (lack := find_lack(request, processes)) is not None:
        raise RequestError(
            f"this clip of {find_model(request.model).name} {lack}: take a smaller model or clip, "
            f"{'precision eight_bit_weights, ' if request.precision == 'full' else ''}or another machine "
            "(--force tries it all the same)"
        )


def count_fitting(requests: Sequence[GenerationRequest]) -> int:
    """How many of resolved requests of one model, from the first on, can be made together on the device of the first:
    with all weights on it, beside what others have of it. One, where nobody knows."""
    import psutil
    import torch

    from radial.loading.memory import free_memory

    try:
        weighed = [find_weights(request) for request in requests]
    except ModelError:  # told where it is loaded
        return 1
    device = find_device(requests[0].device)
    number = number_bytes(requests[0].dtype, device)
    most = psutil.virtual_memory().total if device == "cpu" else free_memory(torch.device(device))
    needs: list[Needs] = []
    for request, (spec, weights) in zip(requests, weighed, strict=True):
        if weights is None:
            break
        needs.append(needs_of(request, spec, weights, number))
        all_of_them = Needs.together(needs)
        if (all_of_them.cpu if device == "cpu" else all_of_them.vram("full")) > most:
            return max(1, len(needs) - 1)
    return max(1, len(needs))


def find_lack(request: GenerationRequest, processes: int = 1) -> str | None:
    """What this machine, however empty, lacks for a resolved request, in words; None where it fits, where nobody knows,
    and where ``RADIAL_FORCE`` is set.

    Raises:
        RequestError: a GPU lacks it.
    """
    import psutil

    if os.environ.get("RADIAL_FORCE"):
        return None
    try:
        spec, weights = find_weights(request)
    except ModelError:  # told where it is loaded
        return None
    if weights is None:
        return None
    device = find_device(request.device)
    needs = needs_of(request, spec, weights, number_bytes(request.dtype, device), processes)
    host = psutil.virtual_memory().total
    if device == "cpu":
        wanted, what = needs.cpu, "memory"
    else:
        _, _, index = device.partition(":")
        most = gpu_memory()[int(index)] if index else max(gpu_memory())
        profile = fit_profile(request, spec, needs, most, device)
        wanted, what = needs.ram(profile), "the host's memory"
    if wanted <= host:
        return None
    return f"needs about {wanted / 1e9:.0f} GB of {what}, and this machine has {host / 1e9:.0f} GB"
