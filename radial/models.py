"""Every model by name: the only place where a model is named.

``find_model`` also takes a Hugging Face hub id or a folder with a diffusers checkpoint.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from radial.errors import ModelError, RequestError
from radial.pattern import RadialPattern
from radial.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a request leaves open, and what the model can make.

    Attributes:
        source: hub id, or folder.
        stride: pixels to one latent token along (frames, height, width), patches included.
        native_frames: the longest clip the model was trained on.
        max_sequence_length: text tokens a prompt is padded or cut to.
        pattern, schedule, block_size: radial attention at the native length.
        layers: transformer layers, for estimates before loading.
    """

    name: str
    summary: str
    source: str
    stride: tuple[int, int, int] = (4, 16, 16)
    height: int = 480
    width: int = 832
    num_frames: int = 81
    fps: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    native_frames: int = 81
    max_sequence_length: int = 512
    pattern: RadialPattern = field(default_factory=lambda: RadialPattern(decay=0.2))
    schedule: Schedule = field(default_factory=lambda: Schedule(dense_layers=1, dense_steps=12))
    block_size: int = 128
    layers: int = 30
    negative_prompt: str = ""

    def check_size(self, height: int, width: int, num_frames: int) -> None:
        """Raise RequestError, naming the nearest legal values, for a clip the model's autoencoder cannot make."""
        for name, value, stride in (("height", height, self.stride[1]), ("width", width, self.stride[2])):
            if value % stride:
                legal = _nearest(value / stride)
                raise RequestError(
                    f"{name} must be a multiple of {stride} for {self.name}, not {value}; "
                    f"the nearest are {' and '.join(str(n * stride) for n in legal)}"
                )
        if (num_frames - 1) % self.stride[0]:
            legal = _nearest((num_frames - 1) / self.stride[0], lowest=0)
            raise RequestError(
                f"num_frames must be a multiple of {self.stride[0]} plus 1 for {self.name}, not {num_frames}; "
                f"the nearest are {' and '.join(str(n * self.stride[0] + 1) for n in legal)}"
            )


def _nearest(quotient: float, lowest: int = 1) -> list[int]:
    below = max(int(quotient), lowest)
    return [below, below + 1]


DRIVEN_PIPELINES = ("WanPipeline",)
_BUNDLED = "bundled:tiny"

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="tiny",
            summary="bundled: moving shapes, works offline on a laptop",
            source=_BUNDLED,
            height=128,
            width=128,
            num_frames=33,
            num_inference_steps=20,
            guidance_scale=3.0,
            native_frames=33,
            max_sequence_length=64,
            # 64 tokens a frame: blocks of 16 and a skip rule to their measure, or nothing far would be left.
            pattern=RadialPattern(decay=1.0, skip_width=16),
            schedule=Schedule(dense_layers=1, dense_steps=2),
            block_size=16,
            layers=12,
        ),
        ModelSpec(
            name="wan2.1-1.3b",
            summary="Wan 2.1 text-to-video, 1.3 B, 480p",
            source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        ),
        ModelSpec(
            name="wan2.1-14b",
            summary="Wan 2.1 text-to-video, 14 B, 480p and 720p",
            source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
            height=720,
            width=1280,
            layers=40,
        ),
        ModelSpec(
            name="wan2.2-a14b",
            summary="Wan 2.2 text-to-video, two 14 B experts, 480p and 720p",
            source="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            height=720,
            width=1280,
            num_inference_steps=40,
            guidance_scale=4.0,
            pattern=RadialPattern(decay=0.8),
            schedule=Schedule(dense_layers=1, dense_steps=11),
            layers=40,
        ),
    )
}


def find_model(name: str) -> ModelSpec:
    """The spec of a model given by name, hub id or folder.

    Raises:
        RequestError: the name is none of these.
        ModelError: the folder is not a checkpoint that can be loaded safely.
    """
    if name in MODELS:
        return MODELS[name]
    for spec in MODELS.values():
        if spec.source == name:
            return spec
    if Path(name).is_dir():
        return _read_folder(Path(name))
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return ModelSpec(name=name, summary="from the Hugging Face hub", source=name)
    known = ", ".join(MODELS)
    raise RequestError(f"unknown model {name!r}; give one of {known}, a hub id like org/name, or a checkpoint folder")


def checkpoint_folder(spec: ModelSpec) -> Path | None:
    """Where a model's files are on this machine; None for a hub id."""
    if spec.source == _BUNDLED:
        from importlib.resources import files

        folder = Path(str(files("radial_assets"))) / "tiny"
        if not (folder / "model_index.json").exists():
            raise ModelError(f"the bundled model is missing from {folder}; reinstall radial-video")
        return folder
    return Path(spec.source) if Path(spec.source).is_dir() else None


def check_checkpoint(folder: Path) -> None:
    """Raise ModelError for a folder that is no checkpoint we drive, lacks weights, or has only pickled ones."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder} is not a diffusers checkpoint: it has no model_index.json")
    kind = _read_json(folder / "model_index.json").get("_class_name")
    if kind not in DRIVEN_PIPELINES:
        raise ModelError(f"{folder} holds a {kind}; radial drives {', '.join(DRIVEN_PIPELINES)}")
    for component, (library, _) in _components(folder).items():
        if library is None or component in ("tokenizer", "scheduler"):
            continue
        files = list((folder / component).glob("*")) if (folder / component).is_dir() else []
        if any(file.suffix == ".safetensors" for file in files):
            continue
        if pickled := [file.name for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]:
            raise ModelError(f"{folder / component} has only pickled weights ({pickled[0]}); safetensors only")
        raise ModelError(f"{folder} lacks the weights of its {component}")


def _components(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    index = _read_json(folder / "model_index.json")
    return {name: tuple(value) for name, value in index.items() if isinstance(value, list) and len(value) == 2}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return content


def fit_spec(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The spec with the strides and layers that the checkpoint itself declares.

    Raises:
        ModelError: the configuration cannot be read.
    """
    vae = _read_json(folder / "vae" / "config.json")
    transformer = _read_json(folder / "transformer" / "config.json")
    temporal, spatial = vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)
    patch = transformer.get("patch_size", (1, 2, 2))
    if not (isinstance(patch, (list, tuple)) and len(patch) == 3):
        raise ModelError(f"{folder / 'transformer'} has a patch size that is not three numbers: {patch!r}")
    stride = (temporal * patch[0], spatial * patch[1], spatial * patch[2])
    return replace(spec, stride=stride, layers=transformer.get("num_layers", spec.layers))


def _read_folder(folder: Path) -> ModelSpec:
    """A spec for a folder, with the settings of the named model it is most like: a toy's frames have few tokens,
    as the bundled model's, and a checkpoint that switches transformers is a Wan 2.2."""
    check_checkpoint(folder)
    transformer = _read_json(folder / "transformer" / "config.json")
    width = transformer.get("num_attention_heads", 40) * transformer.get("attention_head_dim", 128)
    switches = _read_json(folder / "model_index.json").get("boundary_ratio") is not None
    like = MODELS["tiny" if width <= 256 else "wan2.2-a14b" if switches else "wan2.1-1.3b"]
    return fit_spec(replace(like, name=str(folder), summary="checkpoint folder", source=str(folder)), folder)
