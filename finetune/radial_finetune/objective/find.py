"""Which conventions a model is trained by, and which of its transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from radial.errors import ModelError, RequestError
from radial.models.spec import ModelSpec
from radial_finetune.objective.base import Expert, Objective
from radial_finetune.objective.hunyuan_video import HunyuanVideoImageObjective, HunyuanVideoObjective
from radial_finetune.objective.hunyuan_video15 import HunyuanVideo15ImageObjective, HunyuanVideo15Objective
from radial_finetune.objective.mochi import MochiObjective
from radial_finetune.objective.wan import WanImageObjective, WanObjective

_OBJECTIVES: dict[str, type[Objective]] = {
    "WanTransformer3DModel": WanObjective,
    "HunyuanVideoTransformer3DModel": HunyuanVideoObjective,
    "HunyuanVideo15Transformer3DModel": HunyuanVideo15Objective,
    "MochiTransformer3DModel": MochiObjective,
}


def objective_of(kind: str, config: Mapping[str, Any], latent_channels: int) -> type[Objective]:
    """How transformers of a class are trained, which have this configuration and predict so many channels.

    Raises:
        ModelError: that is not known here.
    """
    if kind not in _OBJECTIVES:
        raise ModelError(f"fine-tuning knows the objectives of {', '.join(_OBJECTIVES)}, not of {kind}")
    channels, condition = config["in_channels"], config.get("image_condition_type")
    if kind == "HunyuanVideo15Transformer3DModel" and channels == 2 * latent_channels + 1:
        if config.get("use_meanflow"):
            raise ModelError(
                "this HunyuanVideo 1.5 was distilled to few steps, and is told where each step ends: tune the model "
                "that it was distilled from"
            )
        return HunyuanVideo15ImageObjective if config["task_type"] == "i2v" else HunyuanVideo15Objective
    if channels == latent_channels and condition is None:
        return _OBJECTIVES[kind]
    if kind == "HunyuanVideoTransformer3DModel" and (condition, channels) in (
        ("token_replace", latent_channels), ("latent_concat", 2 * latent_channels + 1),
    ):  # fmt: skip
        return HunyuanVideoImageObjective
    if kind == "WanTransformer3DModel" and channels == 2 * latent_channels + 4:
        return WanImageObjective
    raise ModelError(
        f"this {kind} follows something else besides text and an image to start from; fine-tuning trains models that "
        "start from text alone, and Wan's and HunyuanVideo's that start from an image"
    )


def stands_for_frames(spec: ModelSpec) -> dict[str, str]:
    """What a request must name for a model that always starts from an image, where that is each clip's own."""
    if spec.text_pipeline is not None or spec.image_pipeline is None:
        return {}
    own = "the first frame of each clip"
    return {"image": own} | ({"last_image": "the last frame of each clip"} if spec.needs_last_image else {})


def find_objective(pipe: Any, spec: ModelSpec) -> Objective:
    """How a loaded pipeline's model is trained.

    Raises:
        ModelError: its conventions are not known here.
    """
    latents = getattr(pipe.vae.config, "z_dim", None) or pipe.vae.config.latent_channels
    return objective_of(type(pipe.transformer).__name__, pipe.transformer.config, latents)(pipe, spec)


def expert_span(pipe: Any, expert: Expert | None) -> tuple[str, tuple[float, float]]:
    """The transformer that a run tunes, and the noise levels it is for.

    Raises:
        RequestError: the model has two experts and none was chosen, or the other way round.
    """
    boundary = pipe.config.get("boundary_ratio")
    if boundary is None or getattr(pipe, "transformer_2", None) is None:
        if expert is not None:
            raise RequestError(f"expert {expert!r} is for models with two transformers; leave it out")
        return "transformer", (0.0, 1.0)
    if expert is None:
        raise RequestError("this model has two experts: tune one at a time, expert = 'high' or 'low'")
    return ("transformer", (boundary, 1.0)) if expert == "high" else ("transformer_2", (0.0, boundary))
