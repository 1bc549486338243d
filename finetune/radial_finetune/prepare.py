"""A folder of captioned videos into a cache of latents and text, ready to train on. Interrupted, it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radial.errors import ModelError, RequestError
from radial.files import publish
from radial.loading import LoadedModel
from radial_finetune.clips import Cut, Frames, Source, read_clips
from radial_finetune.objective import check_objective, normalise_latents

VERSION = 1


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds and what it was made with.

    Attributes:
        clips: file of latents and text of each clip, under ``clips``, with the caption and where it came from.
        empty_text: file of the text of an empty caption, for clips trained without one.
    """

    model: str
    fingerprint: str
    num_frames: int
    height: int
    width: int
    fps: float
    clips: list[dict[str, Any]]
    empty_text: str = "empty.safetensors"
    version: int = VERSION


@dataclass
class Report:
    """What became of the files: clips kept, clips and files left out and why."""

    files: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)


def prepare(
    sources: list[Source],
    out: Path,
    model: LoadedModel,
    cut: Cut,
    *,
    on_file: Callable[[int, int, Source], None] = lambda done, total, source: None,
) -> Report:
    """Encode every clip of the sources into ``out``. Clips that are there already are not encoded again.

    Raises:
        RequestError: nothing is left to train on, or the cache was made by another model or for another size.
        ModelError: every file is corrupt, or the model's objective is not known.
    """
    check_objective(model.pipe)
    model.spec.check_size(cut.height, cut.width, cut.num_frames)
    if (out / "index.json").is_file():
        _check_same(read_index(out), model, cut)
    report, clips = Report(files=len(sources)), []
    _encode_text_to(out / "empty.safetensors", model, "")
    for number, source in enumerate(sources):
        on_file(number, len(sources), source)
        try:
            for start, frames in enumerate(read_clips(source.file, cut, report.dropped)):
                name = f"{_content_hash(frames, source.caption, model.fingerprint)}.safetensors"
                if not (out / "clips" / name).is_file():
                    _encode_clip_to(out / "clips" / name, model, frames, source.caption)
                clips.append({"file": name, "caption": source.caption, "source": source.file.name, "clip": start})
        except ModelError:
            report.corrupt.append(source.file.name)
    report.kept = len(clips)
    if len(report.corrupt) == len(sources):
        raise ModelError(f"none of the {len(sources)} files can be read as a video, such as {report.corrupt[0]}")
    if not clips:
        why = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise RequestError(f"no clip of {cut.num_frames} frames is left: {why or 'the files are empty'}")
    index = CacheIndex(model.spec.name, model.fingerprint, cut.num_frames, cut.height, cut.width, cut.fps, clips)
    _write_json(out / "index.json", asdict(index))
    _write_json(out / "report.json", asdict(report))
    return report


def read_index(cache: Path) -> CacheIndex:
    """The index of a cache.

    Raises:
        RequestError: the folder is no finished cache of this version.
    """
    try:
        content = json.loads((cache / "index.json").read_text(encoding="utf-8"))
        index = CacheIndex(**content)
    except FileNotFoundError:
        raise RequestError(f"{cache} is no cache: it has no index.json; run `radial finetune prepare` first") from None
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{cache / 'index.json'} cannot be read: {error}") from error
    if index.version != VERSION:
        raise RequestError(f"{cache} was made by another version; prepare it again")
    return index


def read_clip(cache: Path, name: str) -> tuple[Tensor, Tensor]:
    """Latents ``[C, F, H, W]`` and text ``[L, E]`` of a clip.

    Raises:
        RequestError: the file is missing or torn.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(cache / "clips" / name)
        return tensors["latents"], tensors["text"]
    except (OSError, KeyError, SafetensorError) as error:
        raise RequestError(f"{cache / 'clips' / name} is missing or torn; prepare the cache again") from error


def read_empty_text(cache: Path) -> Tensor:
    """The text of an empty caption."""
    from safetensors.torch import load_file

    return load_file(cache / "empty.safetensors")["text"]


def _check_same(index: CacheIndex, model: LoadedModel, cut: Cut) -> None:
    if index.fingerprint != model.fingerprint:
        raise RequestError(f"this cache was made with {index.model}, other weights than {model.spec.name}")
    had = (index.num_frames, index.height, index.width, index.fps)
    if had != (cut.num_frames, cut.height, cut.width, cut.fps):
        raise RequestError(
            f"this cache holds {had[0]} frames of {had[1]}x{had[2]} at {had[3]:g} fps; take another --out"
        )


@torch.inference_mode()
def _encode_clip_to(path: Path, model: LoadedModel, frames: Frames, caption: str) -> None:
    vae = model.pipe.vae
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(model.device, vae.dtype) / 127.5 - 1
    latents = normalise_latents(vae, vae.encode(pixels).latent_dist.mode())[0]
    _save(path, {"latents": latents.float(), "text": encode_text(model, caption)})


def _encode_text_to(path: Path, model: LoadedModel, caption: str) -> None:
    if not path.is_file():
        _save(path, {"text": encode_text(model, caption)})


@torch.inference_mode()
def encode_text(model: LoadedModel, caption: str) -> Tensor:
    """A caption as the pipeline encodes a prompt, at the length that generation uses."""
    text, _ = model.pipe.encode_prompt(
        caption, do_classifier_free_guidance=False, max_sequence_length=model.spec.max_sequence_length,
        device=model.device,
    )  # fmt: skip
    encoded: Tensor = text[0].float()
    return encoded


def _content_hash(frames: Frames, caption: str, fingerprint: str) -> str:
    digest = hashlib.sha256(f"{VERSION} {fingerprint} {frames.shape} {caption}".encode())
    digest.update(frames.tobytes())
    return digest.hexdigest()[:24]


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    publish(path, lambda partial: save_file(whole, partial), overwrite=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    publish(path, write, overwrite=True)


def cut_for(model: LoadedModel, num_frames: int, height: int, width: int, fps: float | None) -> Cut:
    """How clips are cut for a model; its own frame rate when none is given."""
    return Cut(num_frames, height, width, fps or model.spec.fps)
