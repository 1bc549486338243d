"""Transformers in files of their own, as models are passed on: safetensors in their authors' or diffusers' names, GGUF.

All else that a model needs (text encoder, autoencoder, configurations) comes from a checkpoint in diffusers' layout:
the folder that the file lies in, where that is one, or the hub's of the model that the tensors tell of. A file is of a
model when it holds all of its tensors in their shapes, and no others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from radial.errors import ModelError, some
from radial.models.architecture import Architecture, architecture_in, named_architectures
from radial.models.checkpoint import INDEX, MODULAR_INDEX, read_folder
from radial.models.experts import expert_in, name_of_other
from radial.models.original_names import Part, original_name, plain_name
from radial.models.spec import ModelSpec
from radial.models.table import MODELS, as_fun
from radial.models.weights import Weight, read_header, read_weights

_PREFIX = re.compile(
    r"model\.diffusion_model\.|diffusion_model\.|model\.model\.|net\.(?!\d)|model\.|transformer\.|module\."
)
# What lies beside a transformer in files that hold a whole model, and what is no weight.
_BESIDE = re.compile(
    r"(?:vae|first_stage_model|text_encoders?|cond_stage_model|conditioner|audio_vae|vocoder|text_embedding_projection)\..+|"
    r"(?:video|audio)_embeddings_connector\..+|blocks\.\d+\.(?:attn2|cross_attn)\.norm_added_q\.weight|(?:logvar|pos_embedder)\..+|.*\bfreqs|__x0__|scaled_fp8|"
    r".+\.(?:scale_input|input_scale|comfy_quant|comfy_attention\.config)"
)
_SCALE = re.compile(r"(?P<layer>.+)\.(?:scale_weight|weight_scale)")
# Models that diffusers has no class for, or not this one, by a part of a tensor's name.
_OTHERS = {
    "casual_audio_encoder": "Wan 2.2 S2V", "audio_proj.audio_proj_glob": "HuMo", "multitalk_audio_proj": "MultiTalk",
    "audio_proj.proj1": "MultiTalk or InfiniteTalk", "control_adapter": "Wan Fun Control-Camera",
    "ref_conv": "Wan Fun Control with a reference image", "fps_embedding": "SkyReels V2 diffusion forcing",
    "patch_embedding_pose": "SCAIL", "face_adapter": "Wan Animate", "vace_blocks": "VACE", "cam_encoder": "ReCamMaster",
    "clip_x_embedder": "FramePack", "to_gate_compress": "FastWan with sparse attention",
    "prompt_adaln_single": "LTX-2.3 or later", "llm_adapter": "Anima", "time_r_in": "HunyuanVideo 1.5, step-distilled",
}  # fmt: skip
# Of VideoX-Fun's models on Wan, by width and by the channels that they take in.
_NO_CONTROL = "for whose control's latents diffusers has no pipeline"
_FUN_CHANNELS = {
    (1536, 36): "Wan 2.1 Fun-InP of 1.3 B, which goes into a folder with its other parts in diffusers' layout",
    (1536, 48): f"Wan 2.1 Fun-Control, {_NO_CONTROL}", (5120, 48): f"Wan 2.1 Fun-Control, {_NO_CONTROL}",
    (5120, 52): f"Wan 2.2 Fun-Control, {_NO_CONTROL}",
}  # fmt: skip
# Models of the same tensors as others, that need a pipeline of their own, by what their files are called.
_ALIKE = re.compile(r"(phantom)|(?:skyreels.*)?(?:[-_]|\b)(df|diffusion[-_]?forcing)(?:[-_]|\b)", re.IGNORECASE)
# What the name of a file says of models whose tensors are alike.
_MARKS = {
    "skyreels-v2-14b": r"skyreels", "skyreels-v2-i2v-14b": r"skyreels", "hunyuan-video-i2v": r"i2v|image",
    "hunyuan-video-1.5-i2v": r"i2v|image", "wan2.1-i2v-14b-720p": r"720",
    "wan2.2-a14b": r"2[._-]?2|high|low", "wan2.2-i2v-a14b": r"2[._-]?2|high|low",
    "ltx-video-0.9.5": r"0[._-]?9[._-]?[5-9]", "cogvideox-fun-5b-pose": r"fun|pose|control",
    "framepack-f1": r"(?<![a-z0-9])f1(?![a-z0-9])",
}  # fmt: skip


@dataclass(frozen=True)
class TransformerFile:
    """The tensors of a transformer in a file.

    Attributes:
        weights: by their names without what stands before them.
        keys: in the file, by the same names.
        scales: keys of the scales of weights in 8 bit, by layer.
    """

    path: Path
    weights: dict[str, Weight]
    keys: dict[str, str]
    scales: dict[str, str]


@dataclass(frozen=True)
class Fit:
    """How a file's tensors lie in a transformer.

    Attributes:
        sources: of each parameter, the file's tensor and the part of it.
        unknown, missing, other_shape: tensors and parameters without a counterpart, and those of another shape.
    """

    sources: dict[str, tuple[str, Part]]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]
    other_shape: tuple[str, ...]

    @property
    def faults(self) -> int:
        """How many tensors do not fit."""
        return len(self.unknown) + len(self.missing) + len(self.other_shape)

    def told(self) -> str:
        """What does not fit, in words."""
        parts = []
        for names, what in (
            (self.unknown, "that has no place for"), (self.missing, "the file lacks"),
            (self.other_shape, "of other shapes are"),
        ):  # fmt: skip
            if names:
                parts.append(f"{what} {some(names)}")
        return "; ".join(parts)


def read_single_file(name: str) -> ModelSpec:
    """The spec of a transformer in a file, or of a pair of them, the one for high noise and that for low.

    Args:
        name: the file; of a pair either one where their names differ in that word alone, or both with a comma between.

    Raises:
        ModelError: it is no such file, or of a model that is not driven here.
    """
    given = (
        [Path(part.strip()) for part in name.split(",")] if "," in name and not Path(name).exists() else [Path(name)]
    )
    files = [read_transformer_file(path) for path in given]
    folder = given[0].parent
    if any((folder / name).is_file() for name in (INDEX, MODULAR_INDEX)):
        names = ("transformer", "transformer_2") if (folder / "transformer_2").is_dir() else ("transformer",)
        for file, component in zip(files, names, strict=False):
            check_fit(file, architecture_in(folder, component), f"the {component} of {folder}")
        base = read_folder(folder, without=names)
    else:
        base, names = _tell_model(files[0]), ("transformer",)
        names = ("transformer", "transformer_2") if base.has_two_transformers else names
        for file in files[1:]:
            check_fit(file, named_architectures()[base.name], base.name)
    paths = _in_order(files, len(names))
    shown = ",".join(str(path) for path in paths)
    summary = f"{' and '.join(path.name for path in paths)}, beside {base.name}"
    return replace(base, name=shown, summary=summary, transformer_files=tuple(str(path) for path in paths))


def read_transformer_file(path: Path) -> TransformerFile:
    """What a file holds of a transformer, by its header.

    Raises:
        ModelError: it is no such file, or its numbers are quantised in a way that is not read.
    """
    weights: dict[str, Weight] = {}
    keys, scales = {}, {}
    for weight in read_weights(path):
        name = weight.name
        while (prefix := _PREFIX.match(name)) is not None:
            name = name[prefix.end() :]
        if (scale := _SCALE.fullmatch(name)) is not None:
            scales[scale["layer"]] = weight.name
        elif not _BESIDE.fullmatch(name):
            weights[name], keys[name] = weight, weight.name
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        narrow = weight.dtype.startswith(("I", "U", "BOOL", "F4"))
        if narrow or (layer in scales and not weight.dtype.startswith("F8")):
            raise ModelError(
                f"{path} holds numbers of {weight.dtype or 'a kind'} with scales ({weight.name}), which are not read: "
                "take the file in 16 bit, in FP8, or one of GGUF"
            )
    if path.suffix == ".safetensors":
        said = str((read_header(path).get("__metadata__") or {}).get("_quantization_metadata", ""))
        if (kind := re.search(r'"format"\s*:\s*"(?!float8)(\w+)"', said)) is not None:
            raise ModelError(f"{path} is quantised as {kind[1]}, which is not read: take the file in 16 bit or FP8")
    return TransformerFile(path, weights, keys, scales)


def fit(file: TransformerFile, architecture: Architecture) -> Fit:
    """How a file's tensors lie in a transformer."""
    shapes, index = architecture.shapes, architecture.index
    sources: dict[str, tuple[str, Part]] = {}
    unknown, other_shape = [], []
    for name, weight in file.weights.items():
        layer, dot, parameter = name.rpartition(".")
        layer, parameter = (layer, parameter) if dot and parameter in ("weight", "bias") else (name, "")
        layer = re.sub(r"\.(?:scale|gamma)$", "", layer) if not parameter else layer
        parts = index.get(plain_name(layer), ())
        own = [part.parameter(parameter or "weight", shapes) for part in parts]
        if not parts or any(parameter not in shapes for parameter in own):
            unknown.append(name)
            continue
        whole = (parts[0].whole, *shapes[own[0]][1:])
        if weight.shape != whole and not (weight.packed is not None and math.prod(weight.shape) == math.prod(whole)):
            other_shape.append(f"{name} ({_x(weight.shape)}, not {_x(whole)})")
        sources |= {parameter: (name, part) for parameter, part in zip(own, parts, strict=True)}
    missing = tuple(name for name in shapes if name not in sources)
    return Fit(sources, tuple(unknown), missing, tuple(other_shape))


def _x(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape) or "one number"


def check_fit(file: TransformerFile, architecture: Architecture, what: str) -> Fit:
    """As :func:`fit`, of a file that is to be ``what``.

    Raises:
        ModelError: it is something else.
    """
    found = fit(file, architecture)
    if found.faults:
        raise ModelError(f"{file.path} is not {what}{_other(file)}: {found.told()}")
    return found


def _other(file: TransformerFile) -> str:
    """Which model that is not driven here a file is of, in words, where a tensor tells."""
    name = next((model for part, model in _OTHERS.items() if any(part in key for key in file.weights)), None)
    if name is None and (entry := file.weights.get("patch_embedding.weight")) is not None:
        name = _FUN_CHANNELS.get((entry.shape[0], entry.shape[1] if len(entry.shape) > 1 else 0))
    return f" but {name}" if name else ""


def _candidates(file: TransformerFile) -> dict[str, Architecture]:
    """Named models whose first product has a tensor of that name in the file, and as wide a one where there are any."""
    shapes = {plain_name(name.removesuffix(".weight")): weight.shape for name, weight in file.weights.items()}
    named: dict[str, Architecture] = {}
    as_wide: dict[str, Architecture] = {}
    for model, one in named_architectures().items():
        block = "blocks.0.attn1" if one.kind.startswith(("Wan", "SkyReels")) else "transformer_blocks.0.attn1"
        layer = f"{'transformer_blocks.0.attn' if one.kind.startswith('Hunyuan') else block}.to_q"
        if one.kind.startswith("Kandinsky"):
            layer = "visual_transformer_blocks.0.self_attention.to_query"
        names = (plain_name(original_name(one.kind, layer)[0]), plain_name(layer))
        if (shape := next((shapes[name] for name in names if name in shapes), None)) is not None:
            named[model] = one
            if one.width is None or shape[-1] == one.width:
                as_wide[model] = one
    return as_wide or dict(list(named.items())[:2])


def _tell_model(file: TransformerFile) -> ModelSpec:
    """The named model of a file's tensors."""
    fits: dict[str, Fit] = {}
    candidates = _candidates(file)
    for name in sorted(candidates, key=lambda name: _rank(name, file.path.name)):
        fits[name] = fit(file, candidates[name])
        if not fits[name].faults:
            break
    near = min(fits, key=lambda name: fits[name].faults, default=None)
    if near is None or fits[near].faults > len(file.weights) / 2:
        raise ModelError(
            f"{file.path} is no transformer of a video model that is known here{_other(file)}: its tensors are like "
            f"{', '.join(sorted(file.weights)[:2]) or 'none'}; put it into the folder of the checkpoint that it goes "
            "with"
        )
    if fits[near].faults:
        raise ModelError(f"{file.path} is not {near}{_other(file)}: {fits[near].told()}")
    if (alike := _ALIKE.search(file.path.name)) is not None:
        kind = "Phantom" if alike[1] else "a model of diffusion forcing"
        raise ModelError(
            f"{file.path} is {kind}, by its name, which needs a pipeline that is not driven for single files"
        )
    if (fun := as_fun(MODELS[near], file.path.name)) is not MODELS[near]:
        return fun
    same = [name for name in candidates if candidates[name].numbers == candidates[near].numbers]
    others = [name for name in same if name != near and name in _MARKS and not MODELS[name].has_two_transformers]
    if near in _MARKS or not others:
        return MODELS[near]
    return replace(MODELS[near], note=(
        f"{file.path.name} is taken for {near}; {' and '.join(others)} {'has' if len(others) == 1 else 'have'} the "
        "same tensors, and its name would tell"
    ))  # fmt: skip


def _rank(model: str, file: str) -> int:
    """Models that a file's name speaks of come first, and those that it would have to speak of last."""
    return 1 if model not in _MARKS else 0 if re.search(_MARKS[model], file, re.IGNORECASE) else 2


def _in_order(files: list[TransformerFile], transformers: int) -> list[Path]:
    """The files of as many transformers, the one for high noise first; of a pair the other is looked for."""
    paths = [file.path for file in files]
    if transformers == 1:
        if len(paths) > 1:
            raise ModelError(f"{paths[1]}: this model has one transformer, and two files are given")
        return paths
    experts = [expert_in(path.stem) for path in paths]
    if len(paths) == 1:
        if experts[0] is None:
            raise ModelError(
                f"{paths[0]} is one of a model's two transformers, and its name does not say which: give both, the one "
                "for high noise first, as HIGH.safetensors,LOW.safetensors"
            )
        other = paths[0].with_name(f"{name_of_other(paths[0].stem)}{paths[0].suffix}")
        if not other.is_file():
            raise ModelError(
                f"{paths[0]} is the transformer for {experts[0]} noise, and the other, {other.name}, is not beside it; "
                "give both as HIGH,LOW"
            )
        _check_same(files[0], read_transformer_file(other))
        paths, experts = [*paths, other], [experts[0], expert_in(other.stem)]
    return paths[::-1] if experts[:2] == ["low", "high"] else paths


def _check_same(one: TransformerFile, other: TransformerFile) -> None:
    if {n: w.shape for n, w in one.weights.items()} != {n: w.shape for n, w in other.weights.items()}:
        raise ModelError(f"{one.path} and {other.path} are not two transformers of one model: their tensors differ")
