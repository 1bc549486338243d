"""Checkpoint folders: what they hold, whether it is safe to load, and which model they are like."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from radial.attention.family import patch_sizes
from radial.errors import ModelError, OutputError, first_line
from radial.models.spec import ModelSpec
from radial.models.table import BUNDLED, BUNDLED_CONTROL, CONTROL_FILE, MODELS, as_fun

INDEX, MODULAR_INDEX = "model_index.json", "modular_model_index.json"
NOT_DRIVEN = ("transformer_ref",)  # components of tasks that are not driven here: MiniMax-H3's, from references
CONTROL_CHANNELS = 96  # of what VACE reads: two clips of latents, and a mask for each pixel of a latent place
_WITH_WEIGHTS = ("transformer", "vae", "audio_vae", "text_encoder", "image_encoder", "vocoder")


def driven_pipelines() -> list[str]:
    """The diffusers pipelines that the app can drive."""
    return sorted(set().union(*(spec.pipelines for spec in MODELS.values())))


def checkpoint_folder(spec: ModelSpec) -> Path | None:
    """Where a model's files are on this machine; None for a hub id, but for one whose pieces were put together."""
    if spec.source == BUNDLED:
        return bundled_folder("tiny")
    if spec.source == BUNDLED_CONTROL:
        return put_together(bundled_folder("tiny"), CONTROL_FILE)
    if spec.pieces:
        folder = assembled_folder(spec)
        return folder if folder.is_dir() and all(link.exists() for link in folder.rglob("*")) else None
    return Path(spec.source) if Path(spec.source).is_dir() else None


def bundled_folder(name: str) -> Path:
    """The folder of a model that comes with the package whole.

    Raises:
        ModelError: it is missing.
    """
    from importlib.resources import files

    folder = Path(str(files("radial_assets"))) / name
    if not (folder / INDEX).exists():
        raise ModelError(f"the bundled model is missing from {folder}; reinstall radial-video")
    return folder


def put_together(base: Path, control: Path) -> Path:
    """A folder of links, laid out as a checkpoint of VACE: a whole model of Wan in diffusers' layout, and a file with
    blocks of VACE for its transformer, whose metadata says beside which layers they stand and the base's digest.

    Raises:
        ModelError: the file is none, or its blocks were trained beside another model.
        OutputError: links cannot be made in the cache of the hub.
    """
    from huggingface_hub import constants
    from safetensors import SafetensorError, safe_open

    links = {file.relative_to(base): file for file in sorted(base.rglob("*")) if file.is_file()}
    try:
        # All that the folder is made of, so that one of another installation or version is another.
        made_of = [(file.resolve(), file.stat()) for file in (*links.values(), control)]
        told_of = "\n".join(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in made_of)
        place = (
            Path(constants.HF_HOME) / "radial" / f"{control.stem}--{hashlib.sha256(told_of.encode()).hexdigest()[:16]}"
        )
        if place.is_dir():
            return place
        with safe_open(control, "pt") as file:
            told, names = file.metadata() or {}, list(file.keys())
        layers = json.loads(told["vace_layers"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{control} holds no blocks of VACE that say where they stand: {first_line(error)}") from error
    if told.get("base") != transformer_digest(base):
        raise ModelError(f"the blocks of VACE in {control.name} were trained beside another model than {base}")
    inner = Path("transformer")
    (shards,) = (name for name in links if name.parent == inner and name.name.endswith(".index.json"))
    index = read_json(links.pop(shards))
    index["weight_map"] |= dict.fromkeys(names, control.name)
    pipeline = {k: v for k, v in read_json(links.pop(Path(INDEX))).items() if k != "expand_timesteps"}
    pipeline |= {"_class_name": "WanVACEPipeline", "transformer": ["diffusers", "WanVACETransformer3DModel"]}
    config = read_json(links.pop(inner / "config.json"))
    config |= {"_class_name": "WanVACETransformer3DModel", "vace_layers": layers, "vace_in_channels": CONTROL_CHANNELS}
    written = {Path(INDEX): pipeline, inner / "config.json": config, shards: index}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            whole = Path(made) / "model"
            for name, file in (links | {inner / control.name: control}).items():
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                (whole / name).symlink_to(file.resolve())
            for name, value in written.items():
                (whole / name).write_text(json.dumps(value, indent=2), encoding="utf-8")
            with contextlib.suppress(FileExistsError):  # another process was first
                whole.rename(place)
    except OSError as error:
        if not place.is_dir():
            raise OutputError(
                error.errno, f"cannot put {control.stem} together in {place}: {error.strerror}"
            ) from error
    return place


def transformer_digest(folder: Path) -> str:
    """A digest of the transformer's weights in a checkpoint."""
    digest = hashlib.sha256()
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def assembled_folder(spec: ModelSpec) -> Path:
    """The folder that links the pieces of a model which lie in several places on the hub, be it there or not."""
    from huggingface_hub import constants

    without = "".join(f"--without-{name}" for name in spec.own_components)
    return Path(constants.HF_HOME) / "radial" / f"{spec.source.replace('/', '--')}{without}"


def index_in(folder: Path) -> Path:
    """The file that says what a checkpoint is made of: of diffusers' modular pipelines where it has one that we drive.

    Repositories may have both, and be another pipeline's by the one that we do not drive.

    Raises:
        ModelError: there is none.
    """
    modular, plain = folder / MODULAR_INDEX, folder / INDEX
    if modular.is_file() and (not plain.is_file() or read_json(modular).get("_class_name") in driven_pipelines()):
        return modular
    if plain.is_file():
        return plain
    raise ModelError(f"{folder} is not a diffusers checkpoint: it has no {INDEX} and no {MODULAR_INDEX}")


def check_checkpoint(folder: Path, without: tuple[str, ...] = (), *, weights: bool = True) -> None:
    """Raise ModelError for a folder that is no checkpoint we drive, lacks weights, or has only pickled ones.

    Args:
        without: components whose weights come from elsewhere.
        weights: whether they must be there.
    """
    kind = read_json(index_in(folder)).get("_class_name")
    if kind not in driven_pipelines():
        found = kind if isinstance(kind, str) else _shown(kind)
        raise ModelError(f"{folder} holds a {found}; radial drives {', '.join(driven_pipelines())}")
    for component, (library, _) in components_of(folder).items() if weights else ():
        holds_weights = component.startswith(_WITH_WEIGHTS)
        if library is None or not holds_weights or component in without:
            continue
        files = list((folder / component).glob("*")) if (folder / component).is_dir() else []
        if any(file.suffix == ".safetensors" for file in files):
            continue
        if pickled := [file.name for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]:
            raise ModelError(f"{folder / component} has only pickled weights ({pickled[0]}); safetensors only")
        raise ModelError(f"{folder} lacks the weights of its {component}")


def fit_spec(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The spec with the strides and layers that the checkpoint itself declares.

    Raises:
        ModelError: the configuration cannot be read.
    """
    vae, transformer = read_config(folder / "vae"), read_config(folder / "transformer")
    patch = patch_sizes(transformer)
    temporal, down, across = spec.stride
    named = [vae.get(name) for name in ("scale_factor_temporal", "temporal_compression_ratio")]
    scaling = vae.get("spatio_temporal_scaling")  # LTX-Video's autoencoder, which takes patches first
    halvings = sum(map(bool, scaling)) if isinstance(scaling, list) else None
    if halvings is not None:
        named.append(2**halvings * vae.get("patch_size_t", 1))
    temporal = next((patch[0] * n * spec.chunk_latents for n in named if n), temporal)
    named = [vae.get(name) for name in ("scale_factor_spatial", "spatial_compression_ratio")]
    if halvings is not None:
        named.append(2**halvings * vae.get("patch_size", 1))
    elif isinstance(factors := vae.get("spatial_downsample_factors"), list):  # MiniMax-H3's
        named.append(math.prod(factors))
    elif not any(named) and isinstance(vae.get("block_out_channels"), list) and "scaling_factor" in vae:
        named = [2 ** (len(vae["block_out_channels"]) - 1)]
    spatial = next((n for n in named if n), None)
    if spatial:
        down, across = spatial * patch[1], spatial * patch[2]
    return replace(
        spec,
        stride=(temporal, down, across),
        layers=transformer.get("num_layers", spec.layers),
        # CogVideoX learns positions for texts of one length.
        max_sequence_length=transformer.get("max_text_seq_length", spec.max_sequence_length),
    )


def spec_in(folder: Path, spec: ModelSpec) -> ModelSpec:
    """A model's spec by the files of its checkpoint: what it declares of itself, and of a hub id of its own its class.

    Raises:
        ModelError: the folder is no checkpoint that we drive.
    """
    if any(spec.source == known.source for known in MODELS.values()):
        return fit_spec(spec, folder)
    if spec.transformer_files and spec.source != str(folder):
        found = read_folder(folder, without=spec.own_components)
        return replace(found, name=spec.name, source=spec.source, transformer_files=spec.transformer_files)
    return spec if spec.source == str(folder) else replace(read_folder(folder), name=spec.name, source=spec.source)


def read_folder(folder: Path, without: tuple[str, ...] = (), *, weights: bool = True) -> ModelSpec:
    """A spec for a folder, with the settings of the named model it is most like (:func:`_most_like`), and what its own
    files say; a toy's frames have few tokens, as the bundled model's.

    Args:
        without: components whose weights come from elsewhere.
        weights: whether they must be there.

    Raises:
        ModelError: it is no checkpoint that we drive.
    """
    check_checkpoint(folder, without, weights=weights)
    index = read_json(index_in(folder))
    kind = index["_class_name"]
    transformer = read_config(folder / "transformer")
    if transformer.get("attention_type") == "nabla":
        raise ModelError(
            f"{folder} attends by NABLA, block by block as it was trained, in place of which nothing can stand"
        )
    width = transformer.get("num_attention_heads", 40) * transformer.get("attention_head_dim", 128)
    like = as_fun(_most_like(index, transformer, folder), folder.name)
    changes: dict[str, Any] = {}
    if width <= 256:
        tiny = MODELS["tiny"]
        names = ("height", "width", "num_inference_steps", "pattern", "schedule", "long_pattern", "block_size")
        changes = {name: getattr(tiny, name) for name in names}
        chunks = max(1, 8 // like.chunk_latents)
        changes |= {"num_frames": chunks * like.stride[0] + like.first_frame, "max_sequence_length": 64}
        changes |= dict.fromkeys(("flow_shift", "small_flow_shift", "image_flow_shift", "image_guidance_scale"))
        changes |= {"negative_prompt": "", "prompt_template": "", "step_caches": None, "tiny_decoder": ""}
        if kind == "WanPipeline":
            changes |= {name: getattr(tiny, name) for name in ("native_frames", "guidance_scale", "riflex_period")}
    if kind == "WanImageToVideoPipeline":
        # Wan 2.1 sees images through an encoder, and has places for two of them or one; Wan 2.2 sees latents alone.
        places = transformer.get("pos_embed_seq_len") is not None or transformer.get("image_dim") is None
        changes["takes_last_image"] = places or like.takes_last_image
        changes["needs_last_image"] = transformer.get("pos_embed_seq_len") is not None
    if kind.startswith("LTX2") and transformer.get("cross_attn_mod"):  # LTX-2.3 or later, as diffusers' defaults
        changes |= {"pipeline_arguments": (), "num_inference_steps": changes.get("num_inference_steps", 30)}
    if like.pieces:
        changes |= {"pieces": (), "base": ""}
    if like.name == "framepack":
        told = f"{folder.name} is taken for framepack; F1 has the same parts, and the folder's name would tell"
        changes["note"] = told
    if kind == "HunyuanVideo15ImageToVideoPipeline" and type(side := transformer.get("target_size")) is int:
        changes["bucket_side"] = side
    changes |= _own_settings(folder, replace(like, flow_shift=changes.get("flow_shift", like.flow_shift)))
    changes["has_two_transformers"] = "transformer_2" in components_of(folder, present=True)
    spec = replace(like, name=str(folder), summary="checkpoint folder", source=str(folder), **changes)
    return fit_spec(spec, folder)


def _most_like(index: dict[str, Any], transformer: dict[str, Any], folder: Path) -> ModelSpec:
    """The named model that a checkpoint is most like: of its pipeline, with as many transformers, channels and layers;
    of those that differ in the size of their clips alone the one that the folder's name speaks of."""
    kind = index["_class_name"]
    rows = [s for s in MODELS.values() if not s.source.startswith("bundled:") and kind in s.pipelines]
    rows = [s for s in rows if kind in (s.text_pipeline, s.image_pipeline, s.control_pipeline)] or rows
    if kind in ("WanPipeline", "WanImageToVideoPipeline"):
        if index.get("expand_timesteps"):
            return MODELS["wan2.2-ti2v-5b"]
        rows = [s for s in rows if s.name != "wan2.2-ti2v-5b"]
        two = index.get("boundary_ratio") is not None
        rows = [s for s in rows if s.has_two_transformers == two] or rows
        last = transformer.get("pos_embed_seq_len") is not None
        rows = [s for s in rows if two or s.takes_last_image == last] or rows
    if kind == "HunyuanVideoFramepackPipeline" and re.search(r"(?:^|[^a-z0-9])f1(?:[^a-z0-9]|$)", str(folder).lower()):
        return MODELS["framepack-f1"]
    rows = [s for s in rows if s.layers == transformer.get("num_layers")] or rows
    tall = [s for s in rows if f"{s.height}p" in folder.as_posix().lower()]
    return (tall or rows)[0]


def _own_settings(folder: Path, like: ModelSpec) -> dict[str, Any]:
    """What a checkpoint says of its noise schedule and guidance, where that is another than the model's that it is
    like."""
    changes: dict[str, Any] = {}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        told = read_json(scheduler)
        flows = told.get("prediction_type") == "flow_prediction" or told.get("use_flow_sigmas")
        changes["is_flow"] = bool(flows) or str(told.get("_class_name", "")).startswith("FlowMatch")
        shift = told.get("flow_shift", told.get("shift"))
        # 3 is what diffusers' scripts write for every Wan, and 1 is none.
        if like.flow_shift is not None and isinstance(shift, (int, float)) and shift not in (1, 3):
            changes |= {"flow_shift": None, "small_flow_shift": None, "image_flow_shift": None}
    guider = folder / "guider" / "guider_config.json"
    if guider.is_file() and isinstance(scale := read_json(guider).get("guidance_scale"), (int, float)):
        changes["guidance_scale"] = float(scale)
    return changes


def components_of(folder: Path, *, present: bool = False) -> dict[str, tuple[str | None, str | None]]:
    """What a checkpoint's index lists; those that it has alone where they are to be ``present``.

    Raises:
        ModelError: a component of a modular pipeline lies elsewhere than in the folder of its name.
    """
    path = index_in(folder)
    found: dict[str, tuple[str | None, str | None]] = {}
    for name, value in read_json(path).items():
        if not isinstance(value, list) or not re.fullmatch(r"\w+", name) or name in NOT_DRIVEN:
            continue
        if path.name == MODULAR_INDEX:
            # Library and class as they were when it was saved, and what says where it is loaded from.
            if len(value) != 3 or not isinstance(value[2], dict):
                continue
            if (place := value[2].get("subfolder")) != name:
                raise ModelError(f"{path} has its {name} in {_shown(place)}, where a folder {name} is expected")
            value = value[2].get("type_hint")
        if isinstance(value, list) and len(value) == 2 and not (present and value[0] is None):
            found[name] = (value[0], value[1])
    return found


_MAX_JSON = 8 << 20  # bytes
# The numbers of a configuration that are reckoned with, and the most that each can be.
_COUNTS = {
    "num_layers": 1024, "num_single_layers": 1024, "num_attention_heads": 1024, "attention_head_dim": 4096,
    "ffn_dim": 1 << 20, "mlp_ratio": 1024, "max_text_seq_length": 1 << 16, "patch_size": 64, "patch_size_t": 64,
    "scale_factor_temporal": 256, "scale_factor_spatial": 256, "temporal_compression_ratio": 256,
    "spatial_compression_ratio": 256, "target_size": 8192, "spatial_downsample_factors": 16,
}  # fmt: skip
_LISTS = {
    "patch_size": (3,),
    "spatial_downsample_factors": range(1, 9),
}  # those that may be several numbers, and how many


def read_config(component: Path) -> dict[str, Any]:
    """The configuration of a component, whose numbers are whole and of a size that can be.

    Raises:
        ModelError: there is none, or a number cannot be.
    """
    path = component / "config.json"
    checked = read_json(path)
    for name, most in _COUNTS.items():
        if (value := checked.get(name)) is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        whole = all(type(n) in (int, float) and 0 <= n <= most and n == int(n) for n in numbers)
        if not whole or (isinstance(value, list) and len(value) not in _LISTS.get(name, ())):
            raise ModelError(f"{path} says {name} = {_shown(value)}; a whole number up to {most} is expected")
        checked[name] = [int(n) for n in value] if isinstance(value, list) else int(value)
        if name.startswith(("patch_size", "scale_factor", "spatial_down")) and 0 in numbers:
            raise ModelError(f"{path} says {name} = {_shown(value)}, which cannot be")
    return checked


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        ModelError: there is none, or it is none that a checkpoint has.
    """
    try:
        if not path.is_file():
            raise ModelError(f"there is no file {path}")
        if path.stat().st_size > _MAX_JSON:
            raise ModelError(f"{path} is larger than {_MAX_JSON >> 20} MB: no checkpoint has such a file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"cannot read {path}: {first_line(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return content
