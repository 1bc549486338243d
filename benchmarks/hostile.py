"""Files and values that mean harm, as ``attack.py`` sends them: small to send, large to read, broken, or lying."""

from __future__ import annotations

import base64
import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

DEEP = 100_000  # brackets, far beyond what a parser nests


@cache
def images() -> tuple[tuple[str, bytes], ...]:
    """Pictures of few bytes and many pixels, and what only begins like one; to make them takes a while."""
    return tuple(_images())


@cache
def clips() -> tuple[tuple[str, bytes], ...]:
    """Clips of few bytes and many pixels or frames, and what only begins like one; to make them takes a while."""
    return tuple(_clips())


def _images() -> Iterator[tuple[str, bytes]]:
    for side, kind, depth in ((7_900, 2, 8), (7_900, 6, 16), (10_000, 2, 8), (60_000, 0, 1)):
        yield f"PNG of {side}x{side}, kind {kind}, {depth} bits", png(side, side, kind, depth)
    whole = png(64, 64, 2, 8)
    yield "PNG that ends early", whole[:60]
    yield "PNG of 0x0", png(64, 64, 2, 8).replace(struct.pack(">II", 64, 64), struct.pack(">II", 0, 0), 1)
    yield (
        "PNG with 40 MB of text in 40 kB",
        whole[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b" " * 40_000_000, 9)) + whole[33:],
    )
    for mode, side in (("RGB", 7_900), ("CMYK", 7_900)):
        content = io.BytesIO()
        Image.new(mode, (side, side)).save(content, "JPEG", progressive=True, quality=10)
        yield f"progressive JPEG of {side}x{side}, {mode}", content.getvalue()
    content = io.BytesIO()
    Image.new("RGBA", (16_000, 4_000)).save(content, "WEBP", lossless=True)
    yield "WebP of 16000x4000", content.getvalue()
    frames = [Image.new("RGBA", (4_000, 4_000), (n, 0, 0, n)) for n in range(4)]
    content = io.BytesIO()
    frames[0].save(content, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield "WebP of 4 pictures of 4000x4000", content.getvalue()
    for name, head in (
        ("PNG", b"\x89PNG\r\n\x1a\n"),
        ("JPEG", b"\xff\xd8\xff\xe0"),
        ("WebP", b"RIFF\xff\xff\xff\xffWEBP"),
    ):
        yield f"noise that begins as {name}", head + np.random.default_rng(0).bytes(5_000)


def _clips() -> Iterator[tuple[str, bytes]]:
    yield "MP4 of 6 frames of 8192x8192", clip("mp4", "libx264", 8192, 8192, 6, options={"preset": "ultrafast"})
    yield "MP4 of 2 frames of 16000x8000", clip("mp4", "libx264", 16_000, 8_000, 2, options={"preset": "ultrafast"})
    yield (
        "WebM of 6,000 frames",
        clip("webm", "libvpx", 16, 16, 6_000, options={"deadline": "realtime", "cpu-used": "8"}),
    )
    yield "MP4 with a comment of 60 MB", clip("mp4", "libx264", 64, 64, 2, comment="x" * 60_000_000)
    whole = clip("mp4", "libx264", 64, 64, 4)
    yield "MP4 that ends early", whole[: len(whole) // 2]
    yield "MP4 whose boxes say 2^32 - 1 bytes", whole[:4] + whole[4:].replace(b"moov", b"moov\xff\xff\xff\xffmoov", 1)
    yield "noise that begins as MP4", b"\0\0\0\x18ftypmp42" + np.random.default_rng(1).bytes(5_000)
    yield "noise that begins as WebM", b"\x1aE\xdf\xa3" + np.random.default_rng(2).bytes(5_000)
    yield "playlist", b"#EXTM3U\nfile:///etc/passwd\n"


def settings() -> Iterator[tuple[str, bytes]]:
    """Videos that say of themselves what cannot be."""
    deep = "[" * DEEP
    for name, comment in (
        ("a list as request", '{"radial": "0", "request": []}'), ("a text as request", '{"request": "x"}'),
        ("a list", "[1]"), ("deep brackets", deep), ("deep objects", '{"request":' + '{"a":' * DEEP),
        ("numbers without end", json.dumps({"request": {"prompt": "x", "num_frames": 10**300, "seed": -(10**30)}})),
        ("another's files", json.dumps({"request": {"prompt": "x", "image": "/etc/passwd", "model": "/etc"}})),
        ("a file of Gradio's", json.dumps({"request": {"prompt": "x", "sampler": file_of("/etc/passwd")}})),
        ("30,000 adapters", json.dumps({"request": {"prompt": "x", "loras": [{"path": "a", "weight": 1}] * 30_000}})),
    ):  # fmt: skip
        yield f"settings: {name}", clip("mp4", "libx264", 64, 64, 2, comment=comment)
    yield from clips()


def adapters() -> Iterator[tuple[str, bytes]]:
    """Files that are no adapters, or say of themselves what cannot be."""
    tensor = {"a.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for name, told in (
        ("deep", "[" * DEEP), ("a list", "[]"), ("a number for a text", '{"trigger": 5}'),
        ("a rank of 10^30", json.dumps({"rank": 10**30})),
        ("a trigger of 1 MB", json.dumps({"trigger": "x" * 1_000_000})),
    ):  # fmt: skip
        yield f"adapter: metadata that is {name}", safetensors({"__metadata__": {"radial": told}} | tensor)
    yield "adapter: a header of 2^60 bytes", struct.pack("<Q", 1 << 60) + b"{}"
    yield "adapter: a header of 90 MB", struct.pack("<Q", 90_000_000) + b" " * 90_000_000
    yield "adapter: a deep header", safetensors_of(b'{"a":' * DEEP)
    yield "adapter: pickled", b"\x80\x04cos\nsystem\n"


def datasets() -> Iterator[tuple[str, bytes]]:
    """Zip files that would leave their folder, or take much."""
    for name, entry in (("a way out", "../../x.mp4"), ("an absolute path", "/x.mp4"), ("NUL", "a\0b.mp4")):
        yield f"zip: {name}", zip_of([(entry, b"\0\0\0\x18ftypmp42")])
    yield "zip: a GB of zeros", zip_of([("a.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 1_000_000_000)])
    yield "zip: packed by LZMA", zip_of([("a.mp4", b"\0\0\0\x18ftypmp42" * 1000)], zipfile.ZIP_LZMA)
    names = io.BytesIO()
    with zipfile.ZipFile(names, "w") as archive:
        for number in range(60_000):
            archive.writestr(f"{number}.txt", b"")
    yield "zip: 60,000 files", names.getvalue()
    yield "zip: that ends early", names.getvalue()[:-30]


def models(folder: Path) -> None:
    """Put checkpoints that cannot be into a folder of models, beside each other."""
    from radial_assets import __file__ as assets

    bundled = Path(assets).parent / "tiny"
    index = json.loads((bundled / "model_index.json").read_text())
    config = json.loads((bundled / "transformer" / "config.json").read_text())
    for name, file, content in (
        ("many-layers", "transformer/config.json", json.dumps(config | {"num_layers": 10**30})),
        ("negative", "transformer/config.json", json.dumps(config | {"num_attention_heads": -4})),
        ("texts", "transformer/config.json", json.dumps(config | {"attention_head_dim": "64", "num_layers": "3"})),
        ("no-patch", "transformer/config.json", json.dumps(config | {"patch_size": [0, 0, 0]})),
        ("deep", "transformer/config.json", "[" * DEEP), ("deep-index", "model_index.json", '{"a":' * DEEP),
        ("list-index", "model_index.json", "[]"),
        ("other", "model_index.json", json.dumps(index | {"_class_name": [1]})),
        ("numbers", "model_index.json", json.dumps(index | {"transformer": [1, 2], "../../x": ["a", "b"]})),
        ("long", "vae/config.json", " " * (9 << 20)),
    ):  # fmt: skip
        target = folder / name
        for part in ("model_index.json", "transformer/config.json", "vae/config.json"):
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            (target / part).write_text(content if part == file else (bundled / part).read_text())
        for part in ("transformer", "vae", "text_encoder"):
            (target / part).mkdir(exist_ok=True)
            (target / part / "a.safetensors").write_bytes(safetensors({}))
    shapes: list[Any] = [[-1, 5], [2**62, 2**62], ["3"], [1.5], {}, None, list(range(99))]
    for number, shape in enumerate(shapes):
        (folder / f"shape-{number}.safetensors").write_bytes(
            safetensors({"patch_embedding.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
        )
    (folder / "list.safetensors").write_bytes(safetensors_of(b"[1, 2]"))
    (folder / "deep.safetensors").write_bytes(safetensors_of(b'{"a":' * DEEP))
    (folder / "entries.safetensors").write_bytes(safetensors_of(b'{"a": 5, "b": null}'))
    (folder / "noise.gguf").write_bytes(b"GGUF" + np.random.default_rng(3).bytes(2_000))
    (folder / "counts.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))


def lists(path: str) -> Iterator[str]:
    """Lists in YAML that name a file of the server's: as words, and by types that a request might take for words."""

    def coded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    word, keyed = json.dumps(path), json.dumps(f"0:{path}")
    fields = [f"{name}: {value}" for name in ("image", "extend", "control_video", "model", "decoder")
              for value in (word, f"!!binary {coded(path)}")]  # fmt: skip
    fields += [f"{more}: x, {name}: !!binary {coded(path)}"
               for more, name in (("image", "last_image"), ("control_video", "mask"))]  # fmt: skip
    for name, value, text in (("references", word, path), ("keyframes", keyed, f"0:{path}")):
        fields += [
            f"{name}: [{value}]", f"{name}: !!set {{{value}}}", f"{name}: !<tag:yaml.org,2002:set> {{{value}}}",
            f"{name}: !!binary {coded(text)}", f"{name}: [!!binary {coded(text)}]", f"{name}: !!omap [{value}: 1]",
            f"{name}: !!pairs [{value}: 1]", f"{name}: !!python/tuple [{value}]", f"{name}: {{{value}: 1}}",
        ]  # fmt: skip
    fields += [f"keyframes: [{{frame: 0, image: {value}}}]" for value in (word, f"!!binary {coded(path)}", f"[{word}]")]
    fields += [f"loras: [{{path: {value}}}]" for value in (word, f"!!binary {coded(path)}")]
    fields += [f"loras: !!set {{{word}}}", f"lora: !!set {{{word}}}", f"lora: !!binary {coded(path)}"]
    for field in fields:
        model = "" if "model:" in field else "model: wan2.1-vace-1.3b, "
        yield f"- {{prompt: x, {model}{field}}}"
        yield f"defaults: {{{model}{field}}}\njobs: [x]"
    for value in (f"!!set {{{word}}}", f"!r!set {{{word}}}"):
        grid = f"grid: {{references: [{value}]}}\njobs: [{{prompt: x, model: wan2.1-vace-1.3b}}]"
        yield f"%TAG !r! tag:yaml.org,2002:\n---\n{grid}"


def file_of(path: str) -> dict[str, Any]:
    """What Gradio takes for a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def gradio_paths() -> list[str]:
    """The paths of all routes that Gradio gives a page, as it writes them: with names in braces."""
    import gradio
    from gradio.routes import App

    def walk(routes: Any) -> Iterator[str]:
        for route in routes:
            if (inner := getattr(route, "original_router", None)) is not None:  # as FastAPI keeps included ones
                yield from walk(inner.routes)
            elif hasattr(route, "path"):
                yield route.path

    with gradio.Blocks() as page:
        pass
    found = sorted(set(walk(App.create_app(page).routes)))
    assert len(found) > 60, found
    return found


def png(width: int, height: int, kind: int, depth: int) -> bytes:
    """A PNG of zeros: ``kind`` 0 is grey, 2 RGB, 6 RGBA."""
    row = bytes(1 + (width * {0: 1, 2: 3, 6: 4}[kind] * depth + 7) // 8)
    packer, parts = zlib.compressobj(1), []
    for _ in range(height):
        parts.append(packer.compress(row))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    content = b"".join(parts) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def clip(
    container: str, codec: str, width: int, height: int, frames: int, *, comment: str = "",
    options: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """A video of black frames."""
    with tempfile.NamedTemporaryFile(suffix=f".{container}") as file:
        with av.open(file.name, "w", format=container) as output:
            if comment:
                output.metadata["comment"] = comment
            stream: Any = output.add_stream(codec, rate=Fraction(8), options=options or {})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            picture = av.VideoFrame(width, height, "yuv420p")
            for plane, value in zip(picture.planes, (16, 128, 128), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            for number in range(frames):
                picture.pts = number
                output.mux(stream.encode(picture))
            output.mux(stream.encode())
        return Path(file.name).read_bytes()


def safetensors(header: dict[str, Any]) -> bytes:
    """A file with this header and four bytes."""
    return safetensors_of(json.dumps(header).encode()) + b"\0\0\0\0"


def safetensors_of(header: bytes) -> bytes:
    """A file with these bytes as its header."""
    return struct.pack("<Q", len(header)) + header


def zip_of(entries: list[tuple[str, bytes]], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file of these entries, whatever their names are."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", packing) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, packing
            archive.writestr(info, data, compresslevel=1)
    return content.getvalue()
