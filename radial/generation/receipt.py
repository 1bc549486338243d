"""What a clip's file says of how it was made."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from radial.attention.install import RadialAttention
from radial.generation.acceleration.step_cache import InstalledCache
from radial.generation.snapshot import Snapshot
from radial.input_files import named_files
from radial.loading.load import LoadedModel, fingerprint
from radial.loading.tiny_decoder import TinyDecoder
from radial.plans.measured.policy_file import policy_path
from radial.plans.settings import AttentionSettings
from radial.request import GenerationRequest
from radial.version import __version__


def attention_used(
    request: GenerationRequest, model: LoadedModel, radial: RadialAttention | None, snapshot: Snapshot | None,
    cache: InstalledCache | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a receipt says of attention; what a step cache left out was not computed."""
    settings = request.attention_settings
    attention: dict[str, Any] = {"kind": settings.kind, "computed_share": 1.0}
    if radial is None:
        if cache is not None:
            left_out = cache.skipped_share * (1 - cache.kept_blocks / max(1, model.spec.layers))
            attention["computed_share"] = round(1 - left_out, 4)
        return attention
    if not radial.context.layouts:  # no step of the transformer was left
        return snapshot.attention if snapshot else attention
    from radial_kernels.block_sparse import choose_backend

    like_queries = torch.empty(1, 1, 1, radial.head_dim, device=model.device, dtype=model.dtype)
    told = attention | {
        "computed_share": round(radial.computed_share, 4),
        **_rule(settings, radial),
        "backend": choose_backend(like_queries, block_size=settings.block_size),
    }
    if radial.context.probe is not None:
        told["probe"] = radial.context.probe.report()
    if settings.token_order != "raster":
        told["token_order"] = settings.token_order
    if settings.kind == "adaptive":
        return told | ({} if settings.far_field == "drop" else {"far_field": settings.far_field})
    far = radial.context.far
    return told if far is None else told | {"far_field": settings.far_field, "pooled_share": round(far.pairs, 5)}


def _rule(settings: AttentionSettings, radial: RadialAttention) -> dict[str, Any]:
    """What decides on the blocks that are kept, and how many they are."""
    if radial.plan is None:  # they are chosen anew at every layer and step
        if settings.policy is not None:
            file = policy_path(settings.policy)
            target = settings.model_dump(include={"target_share", "target_speed"}, exclude_none=True)
            return {"policy": {"name": file.name, "fingerprint": fingerprint(file), **target}}
        early = {"early_density"} if settings.early_density < 1 else set()
        return settings.model_dump(include={"density", "sink_frames", "block_size"} | early)
    rule = settings.model_dump(include={"variant", "decay", "sink_frames", "skip_width", "block_size"})
    return {"density": round(radial.plan.density, 4), **rule}


def make_receipt(
    request: GenerationRequest, model: LoadedModel, attention: dict[str, Any], timings: dict[str, float],
    cache: InstalledCache | None = None, decoder: TinyDecoder | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything needed to make the clip again, and what making it took."""
    import diffusers
    import transformers

    receipt = {
        "radial": __version__,
        "request": request.model_dump(mode="json"),
        "model": {
            "name": model.spec.name,
            "source": model.spec.source,
            "revision": model.revision,
            "fingerprint": model.fingerprint,
        },
        "loras": list(model.loras),
        "inputs": {
            name: {"name": Path(path).name, "fingerprint": fingerprint(Path(path))}
            for name, path in named_files(request.model_dump())
        },
        "attention": attention,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "triton": _version("triton"),
            "peft": _version("peft"),
            "av": _version("av"),
        },
        "seconds": timings,
    }
    guided, steps = request.guided_steps, request.num_inference_steps or 0
    if request.is_guided(model.spec) and len(guided) < steps:
        receipt["guidance"] = {"first_step": guided.start, "guided_steps": len(guided), "steps": steps}
    if cache is not None:
        receipt["cache"] = cache.report()
    if decoder is not None:
        receipt["decoder"] = {"name": decoder.name, "fingerprint": decoder.fingerprint}
    return receipt


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
