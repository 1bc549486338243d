"""How a pipeline is laid out over a GPU and the host's memory so that it fits.

    full       everything on the GPU
    balanced   the text encoder, the transformer and the autoencoder one after the other; frames decoded in tiles
    low        the transformer block by block, the next one on its way meanwhile; the text encoder layer by layer
    lowest     everything layer by layer

All of them compute the same, save that tiles are blended where they meet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from radial.errors import GenerationError, RequestError
from radial.loading.needs import TRANSFORMERS, Profile, fit_profile, needs_of
from radial.models.spec import ModelSpec
from radial.models.weights import weights_in
from radial.request import GenerationRequest


def choose_profile(
    request: GenerationRequest, spec: ModelSpec, folder: Path, dtype: torch.dtype, device: torch.device,
    processes: int = 1,
) -> Profile:  # fmt: skip
    """The profile that a request names, or the fastest that fits where so many processes share the clip.

    Raises:
        RequestError: it does not fit on the device; the profile or the length that does is named.
        ModelError: the checkpoint in the folder cannot be read.
    """
    if device.type != "cuda":
        if request.memory not in ("auto", "full"):
            raise RequestError(f"memory {request.memory} is for GPUs; on {device} everything is in one memory")
        return "full"
    needs = needs_of(request, spec, weights_in(folder, spec.own_weights), dtype.itemsize, processes)
    return fit_profile(request, spec, needs, free_memory(device), str(device))


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nobody has but this process."""
    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))


def place(pipe: Any, profile: Profile, device: torch.device) -> None:
    """Lay a loaded pipeline out over the device and the host's memory.

    Raises:
        GenerationError: it does not fit after all.
    """
    try:
        if profile == "full":
            pipe.to(device)
            return
        decode_in_tiles(pipe.vae)
        if profile == "balanced":
            pipe.enable_model_cpu_offload(device=device)
            return
        from diffusers.hooks import apply_group_offloading

        stream = device.type == "cuda"
        for name, component in pipe.components.items():
            if not isinstance(component, torch.nn.Module) or name == "vae":
                continue
            if not getattr(component, "_supports_group_offloading", True):
                component.to(device)
                continue
            by_block = profile == "low" and name in TRANSFORMERS
            apply_group_offloading(
                component, onload_device=device, offload_device=torch.device("cpu"), use_stream=stream,
                offload_type="block_level" if by_block else "leaf_level", num_blocks_per_group=1 if by_block else None,
                low_cpu_mem_usage=stream,
            )  # fmt: skip
        pipe.vae.to(device)
    except torch.OutOfMemoryError as error:
        raise GenerationError(f"the model does not fit into the memory of {device} with memory {profile}") from error


def decode_in_tiles(vae: Any) -> bool:
    """Have an autoencoder work on tiles of a frame, where it can: whether it can."""
    if not hasattr(vae, "enable_tiling"):
        return False
    vae.enable_tiling()
    if hasattr(vae, "enable_slicing"):
        vae.enable_slicing()
    return True
