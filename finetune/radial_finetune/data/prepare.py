"""Captioned videos into a cache of latents and text, ready to train on. Interrupted, it goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from radial.errors import ModelError, RequestError
from radial.loading.load import LoadedModel
from radial_finetune.data.cache import (
    VERSION,
    CachedClip,
    CacheIndex,
    Shards,
    content_key,
    empty_text_file,
    read_index,
    write_index,
    write_json,
    write_tensors,
)
from radial_finetune.data.clips import Bucket, Cut, Frames, read_clips
from radial_finetune.data.sources import Source
from radial_finetune.objective import Objective, find_objective

_NO_FRAMES: Frames = np.empty(0, np.uint8)
_THUMBNAILS = 24
_LARGE_CLIP = 32 << 20  # bytes from which each decoder keeps but one clip ready


@dataclass(frozen=True)
class Fate:
    """What became of a file: clips kept, pieces left out by reason, and what was done to read it."""

    file: str
    kept: int
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass
class Report:
    """What became of the videos: clips kept, of which sizes, clips and files left out and why; and of every file."""

    files: int = 0
    kept: int = 0
    buckets: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)


@dataclass(frozen=True)
class _Clip:
    """A decoded clip on its way into the cache."""

    key: str
    bucket: Bucket
    frames: Frames
    source: Source
    number: int


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
    if (out / "index.json").is_file():
        _check_same(read_index(out), model, cut)
    out.mkdir(parents=True, exist_ok=True)
    report, dropped, shards = Report(files=len(sources)), Counter[str](), Shards(out)
    if not (empty := empty_text_file(out, model.fingerprint)).is_file():
        write_tensors(empty, encode_texts(objective, [""])[0], overwrite=True)
    clips: list[_Clip] = []
    waiting: dict[Bucket, list[_Clip]] = {}
    thumbnails: list[tuple[str, Frames]] = []
    taken = set(shards.found)
    seen = _Seen(out / "sources.jsonl", f"{VERSION} {model.fingerprint} {cut}")
    with contextlib.ExitStack() as stack:
        stack.callback(shards.flush)  # whatever goes wrong, what was encoded need not be encoded again
        decoders = stack.enter_context(
            contextlib.closing(_decode(sources, cut, model.fingerprint, workers, lambda s: seen.find(s, shards.found)))
        )
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
                clips.append(replace(clip, frames=_NO_FRAMES))
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
        raise ModelError(f"none of the {len(sources)} files can be read as a video, such as {report.corrupt[0]}")
    if not clips:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        wanted = " or ".join(str(b.num_frames) for b in sorted(cut.buckets))
        raise RequestError(f"no clip of {wanted} frames at {cut.fps:g} fps is left: {why or 'the files are empty'}")
    cached = tuple(
        CachedClip(c.key, shards.found[c.key], c.bucket, c.source.caption, c.source.name, c.number) for c in clips
    )
    write_index(out, CacheIndex(model.spec.name, model.fingerprint, cut.fps, cached))
    write_json(out / "report.json", asdict(report))
    _draw_report(out, report, cached, cut, thumbnails)
    return report


def encode_texts(objective: Objective, captions: list[str]) -> list[dict[str, torch.Tensor]]:
    """Texts as the transformer is told them, on the CPU."""
    with torch.inference_mode():
        texts = objective.encode_text(captions)
    return [{name: value.cpu().clone() for name, value in text.items()} for text in texts]


class _Decoder:
    """Decodes one source in a thread, a few clips ahead of who takes them."""

    def __init__(self, source: Source, cut: Cut, fingerprint: str, stop: threading.Event) -> None:
        self.source, self.left_out, self.corrupt = source, Counter[str](), False
        self.known, self.notes = False, list[str]()
        self._cut, self._fingerprint, self._stop = cut, fingerprint, stop
        largest = 3 * max(b.num_frames * b.height * b.width for b in cut.buckets)
        self._ready: queue.Queue[_Clip | None] = queue.Queue(maxsize=4 if largest < _LARGE_CLIP else 1)

    def run(self) -> None:
        try:
            for number, frames in enumerate(read_clips(self.source, self._cut, self.left_out, self.notes)):
                key = content_key(frames, self.source.caption, self._fingerprint)
                if not self._put(_Clip(key, Bucket(*frames.shape[:3]), frames, self.source, number)):
                    return
        except ModelError:
            self.corrupt = True
        finally:
            self._put(None)  # whatever happened: who takes the clips waits for it

    def __iter__(self) -> Iterator[_Clip]:
        while (clip := self._ready.get()) is not None:
            yield clip

    def _put(self, clip: _Clip | None) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(clip, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


class _KnownSource(_Decoder):
    """A file whose clips were found and encoded by an earlier call: nothing is decoded."""

    def __init__(self, source: Source, found: list[_Clip], left_out: Counter[str], notes: list[str]) -> None:
        self.notes = notes
        self.source, self.left_out, self.corrupt, self.known = source, left_out, False, True
        self._found = found

    def run(self) -> None:
        return

    def __iter__(self) -> Iterator[_Clip]:
        return iter(self._found)


class _Seen:
    """Which clips earlier calls found in which files, a line a file: what is unchanged need not be decoded again."""

    def __init__(self, path: Path, how: str) -> None:
        self._path, self._how = path, how
        self._lines: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the last one may be torn
                    entry = json.loads(line)
                    self._lines[entry["file"]] = entry

    def find(self, source: Source, encoded: Mapping[str, str]) -> _KnownSource | None:
        """A source that is as it was, and whose clips are all in the shards."""
        entry = self._lines.get(self._digest(source) or "")
        if entry is None or not all(clip["key"] in encoded for clip in entry["clips"]):
            return None
        clips = [
            _Clip(clip["key"], Bucket(*clip["bucket"]), _NO_FRAMES, source, number)
            for number, clip in enumerate(entry["clips"])
        ]
        return _KnownSource(source, clips, Counter(entry["left_out"]), entry.get("notes", []))

    def note(self, source: Source, clips: list[_Clip], left_out: Counter[str], notes: list[str]) -> None:
        if (digest := self._digest(source)) is None:
            return
        found = [{"key": c.key, "bucket": [c.bucket.num_frames, c.bucket.height, c.bucket.width]} for c in clips]
        line = json.dumps({"file": digest, "clips": found, "left_out": left_out, "notes": notes})
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(f"{line}\n")

    def _digest(self, source: Source) -> str | None:
        """Changes with the file, its caption and how it is cut; None for a row of a dataset."""
        if not isinstance(source.content, Path):
            return None
        state = source.content.stat()
        content = f"{self._how} {source.name} {source.caption} {state.st_size} {state.st_mtime_ns}"
        return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def _decode(
    sources: list[Source], cut: Cut, fingerprint: str, workers: int | None,
    find: Callable[[Source], _KnownSource | None],
) -> Generator[_Decoder]:  # fmt: skip
    """A decoder for each source, in turn; the next ones are at work already."""
    workers, stop = workers or os.cpu_count() or 1, threading.Event()
    pool = ThreadPoolExecutor(workers)
    ahead: deque[tuple[_Decoder, Future[None]]] = deque()
    todo, number = iter(sources), 0
    try:
        while True:
            while len(ahead) <= workers and (source := next(todo, None)) is not None:
                # The first ones are decoded in any case: the report shows them.
                known = find(source) if number >= _THUMBNAILS else None
                number += 1
                decoder = known or _Decoder(source, cut, fingerprint, stop)
                ahead.append((decoder, pool.submit(decoder.run)))
            if not ahead:
                return
            decoder, future = ahead.popleft()
            yield decoder
            future.result()  # what it did not expect, it raises here
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def _encode(objective: Objective, clips: list[_Clip], shards: Shards) -> None:
    vae = objective.pipe.vae
    pixels = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 4, 1, 2, 3)
    latents = objective.encode_latents(pixels.to(vae.device, vae.dtype) / 127.5 - 1)
    texts = encode_texts(objective, [clip.source.caption for clip in clips])
    for clip, latent, text in zip(clips, latents.float().cpu(), texts, strict=True):
        shards.add(clip.key, latent.clone(), text)


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
