"""What becomes of files as people have them: adapters of every writer, transformers of every kind, by their headers.

    python benchmarks/formats.py > docs/formats.md

Files are made with the names, dtypes and shapes of real ones and no content, which the reader needs only to apply them;
that they are applied rightly is what tests/adapters and tests/models compute, at small width.
"""

from __future__ import annotations

import functools
import json
import math
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from radial.adapters.account import account_for
from radial.adapters.file import read_adapter
from radial.errors import RadialError
from radial.models.architecture import Architecture, named_architectures
from radial.models.find import find_model
from radial.models.original_names import original_layers

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1}
Tensors = dict[str, tuple[str, tuple[int, ...]]]

# A model of each family, and its layers that trainers put adapters on.
FAMILIES = {
    "Wan 2.1 T2V": ("wan2.1-14b", "blocks.0."), "Wan 2.1 I2V": ("wan2.1-i2v-14b-480p", "blocks.0."),
    "Wan VACE": ("wan2.1-vace-14b", "vace_blocks.0."), "Wan 2.2 A14B": ("wan2.2-a14b", "blocks.0."),
    "SkyReels V2": ("skyreels-v2-14b", "blocks.0."), "HunyuanVideo": ("hunyuan-video", "double_blocks.0."),
    "HunyuanVideo 1.5": ("hunyuan-video-1.5", "double_blocks.0."), "LTX-Video": ("ltx-video", "transformer_blocks.0."),
    "LTX-2": ("ltx-2", "transformer_blocks.0."), "CogVideoX": ("cogvideox-5b", "transformer_blocks.0."),
    "Mochi": ("mochi", "blocks.0."), "Cosmos 1.0": ("cosmos-1.0-7b", "blocks.block0."),
    "Kandinsky 5": ("kandinsky-5-lite", "visual_transformer_blocks.0."),
    "Allegro": ("allegro", "transformer_blocks.0."), "EasyAnimate": ("easyanimate-v5.1-12b", "transformer_blocks.0."),
}  # fmt: skip


def write_sparse(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of such tensors with nothing in them: it takes no disk."""
    head: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype] * math.prod(shape)
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


@functools.cache
def authors_tensors(one: Architecture) -> Mapping[str, tuple[int, ...]]:
    """What a file of the authors of a transformer holds: shapes by name."""
    found, shapes = {}, one.shapes
    for name, parts in original_layers(one.kind, shapes).items():
        for parameter in ("weight", "bias", ""):
            own = [f"{part.layer}.{parameter}".rstrip(".") for part in parts]
            if all(key in shapes for key in own):
                shape = shapes[own[0]]
                found[f"{name}.{parameter}".rstrip(".")] = (parts[0].whole, *shape[1:]) if shape else ()
    return found


def low_rank(name: Callable[[str], str], layers: dict[str, tuple[int, ...]], style: str, rank: int = 16) -> Tensors:
    """Down and up of every layer, in a writer's spelling."""
    down, up = {"AB": ("lora_A.weight", "lora_B.weight"), "default": ("lora_A.default.weight", "lora_B.default.weight"),
                "updown": ("lora_down.weight", "lora_up.weight")}[style.split("+")[0]]  # fmt: skip
    tensors: Tensors = {}
    for layer, (rows, *rest) in layers.items():
        key = name(layer)
        kernel = (1,) * len(rest[1:])
        tensors[f"{key}.{down}"] = ("BF16", (rank, *rest))
        tensors[f"{key}.{up}"] = ("BF16", (rows, rank, *kernel))
        if "alpha" in style:
            tensors[f"{key}.alpha"] = ("F32", ())
        if "dora" in style:
            tensors[f"{key}.dora_scale"] = ("F32", (rows, 1, *kernel))
    return tensors


def flat(name: str) -> str:
    return name.replace(".", "_")


Layers = dict[str, tuple[int, ...]]
ADAPTERS: dict[str, Callable[[Layers], Tensors]] = {
    "ComfyUI, diffusion-pipe, LTX's trainer: `diffusion_model.` with A and B": lambda x: low_rank(
        lambda n: f"diffusion_model.{n}", x, "AB"
    ),
    "the same, down and up with alpha": lambda x: low_rank(lambda n: f"diffusion_model.{n}", x, "updown+alpha"),
    "kohya, musubi-tuner: `lora_unet_` with alpha": lambda x: low_rank(
        lambda n: f"lora_unet_{flat(n)}", x, "updown+alpha"
    ),
    "VideoX-Fun: `lora_unet__`": lambda x: low_rank(lambda n: f"lora_unet__{flat(n)}", x, "updown+alpha"),
    "DiffSynth-Studio: bare names": lambda x: low_rank(lambda n: n, x, "default"),
    "PEFT: `base_model.model.`": lambda x: low_rank(lambda n: f"base_model.model.{n}", x, "AB"),
    "DoRA of LyCORIS and kohya": lambda x: low_rank(lambda n: f"diffusion_model.{n}", x, "updown+alpha+dora"),
    "LoHa": lambda x: {
        f"lora_unet_{flat(n)}.hada_{w}_{p}": ("BF16", (r[0], 8) if p == "a" else (8, math.prod(r[1:])))
        for n, r in x.items() for w in ("w1", "w2") for p in ("a", "b")
    },
    "LoKr": lambda x: {
        f"lora_unet_{flat(n)}.{k}": ("BF16", s)
        for n, r in x.items() if r[0] % 8 == 0 and math.prod(r[1:]) % 8 == 0
        for k, s in (("lokr_w1", (8, 8)), ("lokr_w2", (r[0] // 8, math.prod(r[1:]) // 8)))
    },
    "lightx2v, CausVid, FusionX: `diff`, `diff_b`": lambda x: {
        f"diffusion_model.{n}.{k}": ("BF16", s) for n, r in x.items() for k, s in (("diff", r), ("diff_b", r[:1]))
    },
}  # fmt: skip


def adapter_verdict(model: str, prefix: str, write: Callable[[Layers], Tensors], folder: Path) -> str:
    """What becomes of an adapter on every layer with a matrix of a model's first block."""
    one = named_architectures()[model]
    layers = {
        name.removesuffix(".weight"): shape for name, shape in authors_tensors(one).items()
        if name.startswith(prefix) and name.endswith(".weight") and len(shape) > 1
    }  # fmt: skip
    tensors = write(layers)
    try:
        account = account_for(read_adapter(write_sparse(folder / "a.safetensors", tensors)), one.kind, one.shapes)
    except RadialError as error:
        return f"refused: {error}"
    biases = [key for key in account.left_out if key.endswith("diff_b")]
    if len(biases) == len(account.left_out):
        return f"all {len(layers)}" + (" (no biases there)" if biases else "")
    return f"LoRA {account.file.path.name}: {account.summary}"


def file_verdict(tensors: Tensors, folder: Path, name: str = "some", metadata: dict[str, str] | None = None) -> str:
    """Which model a file of such tensors is taken for."""
    try:
        spec = find_model(str(write_sparse(folder / f"{name}.safetensors", tensors, metadata)))
    except RadialError as error:
        return f"refused: {str(error).replace(f'{folder}/', '')}"
    return f"`{spec.source}`"


def matrix_of_files(folder: Path) -> list[tuple[str, str]]:
    """Files as they are passed on, and what they are taken for."""
    rows = []
    for model, one in named_architectures().items():
        tensors: Tensors = {
            f"model.diffusion_model.{name}": ("BF16", shape) for name, shape in authors_tensors(one).items()
        }
        names = ("some_high_noise", "some_low_noise") if "a14b" in model else ("some",)
        for name in names[1:]:
            write_sparse(folder / f"{name}.safetensors", tensors)
        rows.append((f"{model}'s, by authors' names", file_verdict(tensors, folder, names[0])))
    plain: Tensors = {name: ("BF16", s) for name, s in authors_tensors(named_architectures()["wan2.1-14b"]).items()}
    narrow: Tensors = {
        n: ("F8_E4M3", s) if len(s) == 2 and "blocks" in n else ("BF16", s) for n, (_, s) in plain.items()
    }
    scaled = narrow | {
        n.replace(".weight", ".scale_weight"): ("F32", ()) for n, (d, _) in narrow.items() if d == "F8_E4M3"
    }
    whole = plain | {"vae.decoder.conv1.weight": ("BF16", (2, 2)), "text_encoders.umt5xxl.x": ("BF16", (2, 2))}
    wide = plain | {"patch_embedding.weight": ("BF16", (5120, 48, 1, 2, 2)), "ref_conv.weight": ("BF16", (2, 2))}
    rows += [
        ("Wan 14B in FP8 without scales", file_verdict(narrow, folder)),
        ("Wan 14B in FP8 with scales (Comfy-Org, Kijai, LightX2V)", file_verdict(scaled, folder)),
        ("Wan 14B in NVFP4 (comfy_quant)", file_verdict(
            plain, folder, metadata={"_quantization_metadata": '{"layers": {"a": {"format": "nvfp4"}}}'})),
        ("Wan 14B in int8 with scales", file_verdict(
            plain | {"blocks.0.ffn.0.weight": ("I8", (13824, 5120)), "blocks.0.ffn.0.weight_scale": ("F32", (9,))},
            folder)),
        ("Wan 14B beside its autoencoder and text encoder", file_verdict(whole, folder)),
        ("one half of a Wan 2.2 pair alone", file_verdict(plain, folder / "alone", "x_high_noise")),
        ("Wan 2.2 S2V", file_verdict(plain | {"casual_audio_encoder.weights": ("BF16", (2, 2))}, folder)),
        ("MultiTalk, InfiniteTalk", file_verdict(plain | {"audio_proj.proj1.weight": ("BF16", (2, 2))}, folder)),
        ("Wan Fun Control V1.1", file_verdict(wide, folder)),
        ("SkyReels V2 diffusion forcing, 14 B", file_verdict(plain, folder, "SkyReels-V2-DF-14B")),
        ("Phantom", file_verdict(plain, folder, "Phantom-Wan-14B")),
        ("Wan 14B with tensors missing", file_verdict(
            {n: t for n, t in plain.items() if not n.startswith("blocks.39.")}, folder)),
        ("an autoencoder", file_verdict({"decoder.conv1.weight": ("BF16", (2, 2))}, folder)),
    ]  # fmt: skip
    return rows


def page() -> str:
    """docs/formats.md."""
    lines = [
        "# Files that people have",
        "",
        "Written by `python benchmarks/formats.py > docs/formats.md`, from files with the names and",
        "shapes of real ones at full",
        "size. `radial lora FILE` says the same of yours, layer by layer, and `radial lora FILE --model",
        "NAME` for one model.",
        "",
        "## Adapters",
        "",
        "Adapters on every product of a block, by who writes them so; *all N* says that each of the N",
        "layers takes it. Each is",
        "applied as its file says, which tests compute by hand: with its alpha (of each layer, of",
        "diffusers' metadata, or of",
        "PEFT's file beside it), in one weight that is three of the model's, and what is left out is",
        "named with the reason.",
        "Names may be diffusers', too. Text encoders' parts are left out; OFT, BOFT, IA3, GLoRA and VeRA",
        "are refused.",
        "",
        f"| written by | {' | '.join(FAMILIES)} |",
        f"|---|{'---|' * len(FAMILIES)}",
    ]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "alone").mkdir()
        for title, write in ADAPTERS.items():
            cells = [adapter_verdict(model, prefix, write, folder) for model, prefix in FAMILIES.values()]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines += [
            "",
            "Of a pair for Wan 2.2's two transformers each goes to its own: by `@high` or `@low` behind the",
            "file, by what it says of",
            "itself (also the timesteps that musubi-tuner writes), or by its name. A file without either acts",
            "on both, and says so.",
            "",
            "## Transformers in a file",
            "",
            "Safetensors by authors' or diffusers' names, or GGUF; a file is of a model when it holds all of",
            "its tensors and no",
            "others. Two files for Wan 2.2 are found by their names, or given as `HIGH,LOW`.",
            "",
            "| file | taken for |",
            "|---|---|",
        ]
        lines += [f"| {name} | {verdict.replace('|', ' ')} |" for name, verdict in matrix_of_files(folder)]
    lines += [
        "",
        "Models of the same tensors are told by their files' names: 480p and 720p, SkyReels V2 and Wan",
        "2.1, HunyuanVideo's",
        "text and image models, LTX-Video 0.9.5 and later, CogVideoX-Fun.",
        "",
        "## Not verified",
        "",
        "No weights of the hub could be read here. Names, shapes and settings are from conversion",
        "scripts, published key lists",
        "and the trainers' code; original names of EasyAnimate and Allegro, and LoRA of CogVideoX's SAT,",
        "from none of them.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
