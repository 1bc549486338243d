"""Files decoded in threads while others are encoded, and what earlier calls found in them."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radial.errors import ModelError
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import content_key
from radial_finetune.data.clips import Cut, Frames, read_clips
from radial_finetune.data.sources import Source

NO_FRAMES: Frames = np.empty(0, np.uint8)
_LARGE_CLIP = 32 << 20  # bytes from which each decoder keeps but one clip ready


@dataclass(frozen=True)
class DecodedClip:
    """A clip on its way into the cache."""

    key: str
    bucket: Bucket
    frames: Frames
    source: Source
    number: int


class Decoder:
    """Decodes one source in a thread, a few clips ahead of who takes them."""

    def __init__(self, source: Source, cut: Cut, fingerprint: str, stop: threading.Event) -> None:
        self.source, self.left_out, self.corrupt = source, Counter[str](), False
        self.known, self.notes = False, list[str]()
        self._cut, self._fingerprint, self._stop = cut, fingerprint, stop
        largest = 3 * max(b.num_frames * b.height * b.width for b in cut.buckets)
        self._ready: queue.Queue[DecodedClip | None] = queue.Queue(maxsize=4 if largest < _LARGE_CLIP else 1)

    def run(self) -> None:
        try:
            clips = read_clips(self.source, self._cut, self.left_out, self.notes, lambda: not self._stop.is_set())
            for number, frames in enumerate(clips):
                key = content_key(frames, self.source.captions, self._fingerprint)
                if not self._put(DecodedClip(key, Bucket(*frames.shape[:3]), frames, self.source, number)):
                    return
        except ModelError as error:
            self.corrupt = True
            self.notes.append(str(error))
        finally:
            self._put(None)  # whatever happened: who takes the clips waits for it

    def __iter__(self) -> Iterator[DecodedClip]:
        while (clip := self._ready.get()) is not None:
            yield clip

    def _put(self, clip: DecodedClip | None) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(clip, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


class KnownSource(Decoder):
    """A file whose clips were found and encoded by an earlier call: nothing is decoded."""

    def __init__(self, source: Source, found: list[DecodedClip], left_out: Counter[str], notes: list[str]) -> None:
        self.notes = notes
        self.source, self.left_out, self.corrupt, self.known = source, left_out, False, True
        self._found = found

    def run(self) -> None:
        return

    def __iter__(self) -> Iterator[DecodedClip]:
        return iter(self._found)


class Seen:
    """Which clips earlier calls found in which files, a line a file: what is unchanged need not be decoded again."""

    def __init__(self, path: Path, how: str, cut: Cut) -> None:
        self._path, self._how, self._cut = path, f"{how} {cut}", cut
        self._lines: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the last one may be torn
                    entry = json.loads(line)
                    self._lines[entry["file"]] = entry

    def find(self, source: Source, encoded: Mapping[str, str]) -> KnownSource | None:
        """A source that is as it was, and whose clips are all in the shards."""
        entry = self._lines.get(self._digest(source) or "")
        if entry is None or not all(clip["key"] in encoded for clip in entry["clips"]):
            return None
        clips = [
            DecodedClip(clip["key"], Bucket(*clip["bucket"]), NO_FRAMES, source, number)
            for number, clip in enumerate(entry["clips"])
        ]
        return KnownSource(source, clips, Counter(entry["left_out"]), entry.get("notes", []))

    def note(self, source: Source, clips: list[DecodedClip], left_out: Counter[str], notes: list[str]) -> None:
        if (digest := self._digest(source)) is None:
            return
        found = [{"key": c.key, "bucket": [c.bucket.num_frames, c.bucket.height, c.bucket.width]} for c in clips]
        line = json.dumps({"file": digest, "clips": found, "left_out": left_out, "notes": notes})
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(f"{line}\n")

    def _digest(self, source: Source) -> str | None:
        """Changes with the file, its captions and how it is cut; None for a row of a dataset."""
        if not isinstance(source.content, Path):
            return None
        state = source.content.stat()
        told = "\0".join(source.captions)
        content = f"{self._how} {source.name} {told} {state.st_size} {state.st_mtime_ns}{self._cut.also(source)}"
        return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def decode(
    sources: list[Source], cut: Cut, fingerprint: str, workers: int | None, first: int,
    find: Callable[[Source], KnownSource | None],
) -> Generator[Decoder]:  # fmt: skip
    """A decoder for each source, in turn; the next ones are at work already.

    Args:
        first: sources that are decoded in any case; the report shows them.
        find: those of the others that are known from an earlier call.
    """
    workers, stop = workers or os.cpu_count() or 1, threading.Event()
    pool = ThreadPoolExecutor(workers)
    ahead: deque[tuple[Decoder, Future[None]]] = deque()
    todo, number = iter(sources), 0
    try:
        while True:
            while len(ahead) <= workers and (source := next(todo, None)) is not None:
                known = find(source) if number >= first else None
                number += 1
                decoder = known or Decoder(source, cut, fingerprint, stop)
                ahead.append((decoder, pool.submit(decoder.run)))
            if not ahead:
                return
            decoder, future = ahead.popleft()
            yield decoder
            future.result()  # what it did not expect, it raises here
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
