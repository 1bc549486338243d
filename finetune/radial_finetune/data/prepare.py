"""Captioned videos and pictures into a cache of latents and text, ready to train on. Interrupted, it goes on."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import torch
from PIL import Image

from radial.errors import ModelError, RequestError
from radial.loading.load import LoadedModel
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import (
    VERSION,
    CachedClip,
    CacheIndex,
    Shards,
    empty_text_file,
    read_index,
    write_index,
    write_json,
    write_tensors,
)
from radial_finetune.data.clips import Cut, Frames
from radial_finetune.data.decoding import NO_FRAMES, DecodedClip, Seen, decode
from radial_finetune.data.sources import Source
from radial_finetune.objective import Objective, find_objective

_THUMBNAILS = 24
_FEW = 4  # clips of a size, below which it is told
_TEXTS = 8  # further captions that are encoded at a time


@dataclass(frozen=True)
class Fate:
    """What became of a file: clips kept, pieces left out by reason, and what was done to read it."""

    file: str
    kept: int
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass
class Report:
    """What became of the files: clips kept, of which sizes, clips and files left out and why; of every file; and what
    is to be said of all together."""

    files: int = 0
    kept: int = 0
    buckets: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(
    sources: list[Source],
    out: Path,
    model: LoadedModel,
    cut: Cut,
    *,
    batch_size: int = 1,
    workers: int | None = None,
    on_file: Callable[[int, int, Source], None] = lambda done, total, source: None,
) -> Report:
    """Encode every clip of the sources into ``out``. Clips that are there already are not encoded again.

    Args:
        batch_size: clips of one size that are encoded at a time.
        workers: threads that decode ahead, by default one a core.

    Raises:
        RequestError: nothing is left to train on, or the cache was made by another model or at another rate.
        ModelError: every file is corrupt, or the model's objective is not known.
        OutputError: the disk is full; what was encoded so far is kept.
    """
    objective = find_objective(model.pipe, model.spec)
    cv2.setNumThreads(1)  # files are decoded side by side: threads within each would fight over the cores
    torch.backends.cudnn.benchmark = True  # few sizes, many clips: looking for the fastest convolution pays
    for bucket in cut.buckets:
        model.spec.check_size(bucket.height, bucket.width, bucket.num_frames)
        if objective.first_frame == "always":  # some pipelines choose the size by the image
            model.spec.fitted(bucket.height, bucket.width, snap=False)
    if not objective.takes_pictures and (
        any(source.is_picture for source in sources) or any(bucket.num_frames == 1 for bucket in cut.buckets)
    ):
        raise RequestError(
            f"{model.spec.name} starts from the first frame of a clip, and of one frame nothing is left to learn: "
            f"leave pictures out, and take clips of {model.spec.stride[0] + 1} frames or more"
        )
    for height, width in cut.picture_sizes if any(source.is_picture for source in sources) else ():
        model.spec.check_size(height, width, 1)
    if (out / "index.json").is_file():
        _check_same(read_index(out), model, cut)
    out.mkdir(parents=True, exist_ok=True)
    report, dropped, shards = Report(files=len(sources)), Counter[str](), Shards(out)
    empty = empty_text_file(out, model.fingerprint)
    if not objective.text_sees_frames and not empty.is_file():  # else each clip has an empty text of its own
        write_tensors(empty, encode_texts(objective, [""])[0], overwrite=True)
    clips: list[DecodedClip] = []
    waiting: dict[Bucket, list[DecodedClip]] = {}
    thumbnails: list[tuple[str, Frames]] = []
    taken = set(shards.found)
    seen = Seen(out / "sources.jsonl", f"{VERSION} {model.fingerprint}", cut)
    with contextlib.ExitStack() as stack:
        stack.callback(shards.flush)  # whatever goes wrong, what was encoded need not be encoded again
        decoders = stack.enter_context(
            contextlib.closing(
                decode(
                    sources, cut, model.fingerprint, workers, _THUMBNAILS, lambda one: seen.find(one, shards.found)
                )
            )
        )  # fmt: skip
        for done, decoder in enumerate(decoders):
            on_file(done, len(sources), decoder.source)
            first = len(clips)
            for clip in decoder:
                if len(thumbnails) < _THUMBNAILS and len(clip.frames):
                    thumbnails.append((f"{clip.bucket}: {clip.source.caption}", _five_frames(clip.frames)))
                if clip.key not in taken:
                    taken.add(clip.key)
                    batch = waiting.setdefault(clip.bucket, [])
                    batch.append(clip)
                    if len(batch) >= batch_size:
                        _encode(objective, waiting.pop(clip.bucket), shards)
                clips.append(replace(clip, frames=NO_FRAMES))
            if decoder.corrupt:
                report.corrupt.append(decoder.source.name)
                decoder.left_out["corrupt"] = 1
            elif not decoder.known:
                seen.note(decoder.source, clips[first:], decoder.left_out, decoder.notes)
            report.fates.append(
                Fate(decoder.source.name, len(clips) - first, dict(decoder.left_out), tuple(decoder.notes))
            )
            if not decoder.corrupt:
                dropped.update(decoder.left_out)
        for batch in waiting.values():
            _encode(objective, batch, shards)
    report.kept, report.dropped = len(clips), dict(dropped)
    report.buckets = {str(b): count for b, count in sorted(Counter(clip.bucket for clip in clips).items())}
    if len(report.corrupt) == len(sources):
        raise ModelError(
            f"none of the {len(sources)} files can be read as a video or picture, such as {report.corrupt[0]}"
        )
    if not clips:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        wanted = " or ".join(str(b.num_frames) for b in sorted(cut.buckets))
        raise RequestError(f"no clip of {wanted} frames at {cut.fps:g} fps is left: {why or 'the files are empty'}")
    cached = tuple(
        CachedClip(
            c.key, shards.found[c.key], c.bucket, c.source.caption, c.source.name, c.number, c.source.others,
            c.source.share.num_repeats,
        )
        for c in clips
    )  # fmt: skip
    report.notes = _notes_on(report.buckets, cached)
    write_index(out, CacheIndex(model.spec.name, model.fingerprint, cut.fps, cached))
    write_json(out / "report.json", asdict(report))
    _draw_report(out, report, cached, cut, thumbnails)
    return report


def encode_texts(
    objective: Objective, captions: list[str], images: Sequence[Image.Image] = ()
) -> list[dict[str, torch.Tensor]]:
    """Texts as the transformer is told them, on the CPU; with the frame that each one's clip starts from, where text
    sees them."""
    with torch.inference_mode():
        texts = objective.encode_text(captions, images)
    return [{name: value.cpu().clone() for name, value in text.items()} for text in texts]


@torch.inference_mode()
def _encode(objective: Objective, clips: list[DecodedClip], shards: Shards) -> None:
    vae = objective.pipe.vae
    pixels = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 4, 1, 2, 3)
    latents, deviation = objective.encode_drawn(pixels.to(vae.device, vae.dtype) / 127.5 - 1)
    sees = objective.text_sees_frames
    images = [Image.fromarray(clip.frames[0]) for clip in clips] if sees else []
    texts = encode_texts(objective, [clip.source.caption for clip in clips], images)
    for number, (clip, latent, text) in enumerate(zip(clips, latents.float().cpu(), texts, strict=True)):
        others, own = clip.source.others, images[number : number + 1]
        groups = [list(others[at : at + _TEXTS]) for at in range(0, len(others), _TEXTS)]
        parts = [encode_texts(objective, group, own * len(group)) for group in groups]
        empty = encode_texts(objective, [""], own)[0] if sees else None
        start = objective.encode_start(clip.frames) if objective.first_frame == "always" else None
        shards.add(
            clip.key, latent.clone(), text, *(one for part in parts for one in part), start=start, empty=empty,
            deviation=None if deviation is None else deviation[number],
        )  # fmt: skip


def _notes_on(buckets: dict[str, int], clips: tuple[CachedClip, ...]) -> list[str]:
    """What a user should know of a cache before training on it."""
    notes = [
        f"only {count} clip{'s' * (count > 1)} of {size}: a batch of more holds the same one twice"
        for size, count in buckets.items()
        if count < _FEW and len(buckets) > 1
    ]
    several = [len(clip.captions) for clip in clips if clip.others]
    if several:
        notes.append(f"{len(several)} clips have {sum(several) / len(several):.3g} captions: each step draws one")
    again = Counter(clip.num_repeats for clip in clips)
    notes += [f"{again[n]} clips come {n} times an epoch" for n in sorted(again) if n > 1]
    return notes


def _check_same(index: CacheIndex, model: LoadedModel, cut: Cut) -> None:
    if index.fingerprint != model.fingerprint:
        raise RequestError(f"this cache was made with {index.model}, other weights than {model.spec.name}")
    if index.fps != cut.fps:
        raise RequestError(f"this cache holds clips at {index.fps:g} fps, not {cut.fps:g}; take another --out")


def _five_frames(frames: Frames) -> Frames:
    chosen: Frames = frames[[round(i * (len(frames) - 1) / 4) for i in range(5)]]
    return chosen.copy()  # not a view that would keep the whole clip


def _draw_report(
    out: Path, report: Report, clips: tuple[CachedClip, ...], cut: Cut, thumbnails: list[tuple[str, Any]]
) -> None:
    from radial.files import publish
    from radial.plans.drawing import write_png
    from radial_finetune.data.pictures import contact_sheet, draw_cache

    write_png(contact_sheet(thumbnails), out / "sheet.png", overwrite=True)
    publish(
        out / "report.png", lambda partial: draw_cache(report.buckets, report.dropped, clips, cut.fps, partial),
        overwrite=True,
    )  # fmt: skip
