"""A cache of clips ready to train on: latents and text in safetensors shards, and an index of what they are.

A clip's key is a digest of its pixels, its caption and the model that encoded it, so that a clip which is there need
not be encoded again, and one that changed is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radial.errors import RequestError
from radial.files import publish, publish_text
from radial_finetune.data.buckets import Bucket

VERSION = 2
_OPEN = ("others", "then", "cuts", "bare")  # of a clip, what most do not have


@dataclass(frozen=True)
class CachedClip:
    """One clip: its key and shard, its size, its caption, and the number of it within its source; further captions, of
    which a step draws one; how often it comes in an epoch; the prompts that follow its caption, each in an equal share
    of the clip's time; those of its prompts before which the picture cuts; and, of a story, the same prompts without a
    word of looks."""

    key: str
    shard: str
    bucket: Bucket
    caption: str
    source: str
    clip: int
    others: tuple[str, ...] = ()
    num_repeats: int = 1
    then: tuple[str, ...] = ()
    cuts: tuple[int, ...] = ()
    bare: tuple[str, ...] = ()

    @property
    def texts(self) -> int:
        """How many texts follow one another within the clip."""
        return 1 + len(self.then)

    @property
    def captions(self) -> tuple[str, ...]:
        return self.caption, *self.others


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds and what it was made with."""

    model: str
    fingerprint: str
    fps: float
    clips: tuple[CachedClip, ...]
    version: int = VERSION

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return tuple(sorted({clip.bucket for clip in self.clips}))

    @property
    def digest(self) -> str:
        """Changes with the clips, their order and their repeats, which decide what a run trains on."""
        told = (clip.key + (f"*{clip.num_repeats}" if clip.num_repeats > 1 else "") for clip in self.clips)
        return hashlib.blake2b("".join(told).encode(), digest_size=12).hexdigest()

    @property
    def digest_with_bare(self) -> str:
        """The same for runs that tell stories without looks, too: it changes with which clips have such words."""
        bare = "".join("1" if clip.bare else "0" for clip in self.clips)
        return f"{self.digest}-{hashlib.blake2b(bare.encode(), digest_size=6).hexdigest()}"


def read_index(cache: Path) -> CacheIndex:
    """The index of a cache.

    Raises:
        RequestError: the folder is no finished cache of this version.
    """
    path = cache / "index.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("version") != VERSION:
            raise RequestError(f"{cache} was made by another version; prepare it again in another folder")
        clips = tuple(
            CachedClip(
                **clip | {"bucket": Bucket(**clip["bucket"])} | {name: tuple(clip.get(name, ())) for name in _OPEN}
            )
            for clip in content.pop("clips")
        )
        return CacheIndex(**content, clips=clips)
    except FileNotFoundError:
        raise RequestError(f"{cache} is no cache: it has no index.json; run `radial finetune prepare` first") from None
    except RequestError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error


def write_index(cache: Path, index: CacheIndex) -> None:
    content = asdict(index)
    for clip in content["clips"]:  # what most clips do not have is not written: as it always was
        for name in _OPEN:
            if not clip[name]:
                del clip[name]
        if clip["num_repeats"] == 1:
            del clip["num_repeats"]
    write_json(cache / "index.json", content)


def read_start(cache: Path, clip: CachedClip) -> dict[str, Tensor]:
    """What a clip starts from, where its model starts from images.

    Raises:
        RequestError: its shard is missing or torn.
    """
    (start,) = _read(cache, clip, "start")
    return start


def read_deviation(cache: Path, clip: CachedClip) -> Tensor:
    """How far latents of a clip deviate that steps draw: ``[C, F, H, W]``, float32.

    Raises:
        RequestError: its shard is missing or torn, or of a cache that did not keep it yet.
    """
    (found,) = _read(cache, clip, "deviation")
    if not found:
        raise RequestError(f"{cache} holds no deviations of latents, from which each step draws: prepare it again in "
                           "another folder")  # fmt: skip
    return found[""].float()


def read_clip(cache: Path, clip: CachedClip, caption: int | None = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Latents ``[C, F, H, W]`` and text of a clip.

    Args:
        caption: the number of its caption that is wanted; None is the empty one that it has where text sees frames.

    Raises:
        RequestError: its shard is missing or torn.
    """
    latents, text = _read(cache, clip, "latents", _text_name(caption))
    return latents[""], text


def read_bare(cache: Path, clip: CachedClip) -> dict[str, Tensor]:
    """The text of a story's prompts without a word of looks; empty where the cache has none.

    Raises:
        RequestError: its shard is missing or torn.
    """
    (found,) = _read(cache, clip, "bare") if clip.bare else ({},)
    return found


def _read(cache: Path, clip: CachedClip, *parts: str) -> list[dict[str, Tensor]]:
    """The tensors of parts of a clip, by what stands behind the part's name."""
    from safetensors import SafetensorError, safe_open

    path, found = cache / clip.shard, []
    try:
        with safe_open(path, "pt") as shard:
            names = _names(path, path.stat().st_mtime_ns)
            for prefix in (f"{clip.key}/{part}" for part in parts):
                own = [name for name in names if name == prefix or name.startswith(f"{prefix}/")]
                found.append({name.removeprefix(prefix).removeprefix("/"): shard.get_tensor(name) for name in own})
            return found
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{path} is missing or torn; prepare the cache again") from error


def _text_name(caption: int | None) -> str:
    return "empty" if caption is None else f"text{caption or ''}"


def empty_text_file(cache: Path, fingerprint: str) -> Path:
    """Where the text of an empty caption is, as a model encodes it."""
    return cache / f"empty-{fingerprint}.safetensors"


def read_empty_text(cache: Path, fingerprint: str) -> dict[str, Tensor]:
    """The text of an empty caption, for clips trained without one.

    Raises:
        RequestError: its file is missing or torn.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = empty_text_file(cache, fingerprint)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{path} is missing or torn; prepare the cache again") from error


@functools.lru_cache(maxsize=4096)
def _names(shard: Path, modified: int) -> tuple[str, ...]:
    from safetensors import safe_open

    with safe_open(shard, "pt") as file:
        return tuple(file.keys())


class Shards:
    """The shards of a cache while it is made. What is added reaches a file once there is enough of it, or on flush."""

    def __init__(self, cache: Path, max_bytes: int = 256 << 20, max_clips: int = 64) -> None:
        self._cache, self._max_bytes, self._max_clips = cache, max_bytes, max_clips
        self.found = {
            name.split("/")[0]: path.name
            for path in sorted(cache.glob("shard-*.safetensors"))
            for name in _names(path, path.stat().st_mtime_ns)
        }
        self._waiting: dict[str, Tensor] = {}
        self._keys: list[str] = []

    def add(
        self, key: str, latents: Tensor, *texts: dict[str, Tensor], start: dict[str, Tensor] | None = None,
        empty: dict[str, Tensor] | None = None, deviation: Tensor | None = None,
        bare: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Add a clip, the text of each of its captions, and, where its model starts from images, what it starts from
        and the text of an empty caption with it; where steps draw latents, how far these deviate; of a story, the text
        of its prompts without a word of looks. Its shard is known after the next flush."""
        self._waiting[f"{key}/latents"] = latents.contiguous().cpu()
        if deviation is not None:
            self._waiting[f"{key}/deviation"] = deviation.half().cpu().clone(memory_format=torch.contiguous_format)
        self._waiting |= {f"{key}/start/{name}": value.float().cpu().clone() for name, value in (start or {}).items()}
        self._waiting |= {f"{key}/bare/{name}": value.cpu().clone() for name, value in (bare or {}).items()}
        # Clones: a view would carry the whole batch's storage into the file.
        self._waiting |= {
            f"{key}/{_text_name(number)}/{name}": value.cpu().clone()
            for number, text in [*enumerate(texts), *([(None, empty)] if empty is not None else [])]
            for name, value in text.items()
        }
        self._keys.append(key)
        if len(self._keys) >= self._max_clips or sum(x.nbytes for x in self._waiting.values()) >= self._max_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OutputError: the disk is full or cannot be written; shards written before are whole.
        """
        if not self._keys:
            return
        taken = [int(path.stem[6:]) for path in self._cache.glob("shard-?????.safetensors")]
        name = f"shard-{max(taken, default=-1) + 1:05d}.safetensors"
        write_tensors(self._cache / name, self._waiting, overwrite=False)
        self.found |= dict.fromkeys(self._keys, name)
        self._waiting, self._keys = {}, []


def content_key(frames: NDArray[np.uint8], captions: tuple[str, ...], fingerprint: str) -> str:
    """The key of a clip."""
    told = "\0".join(captions)
    digest = hashlib.blake2b(f"{VERSION} {fingerprint} {frames.shape} {told}".encode(), digest_size=12)
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], *, overwrite: bool) -> None:
    publish(path, lambda partial: save_tensors(tensors, partial), overwrite=overwrite)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whose mode is as the umask says; the library by itself makes it its user's alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def write_json(path: Path, content: dict[str, Any]) -> None:
    publish_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def stack_latents(latents: list[Tensor]) -> Tensor:
    """A batch of latents, float32 whatever they were kept in."""
    return torch.stack(latents).float()
