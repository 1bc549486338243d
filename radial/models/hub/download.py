"""Models from the Hugging Face hub: what is still missing and whether it fits on the disk is known before it comes.

What came is kept whatever happens; a download that was cut off goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radial.errors import ModelError, OutputError, RadialError, first_line
from radial.files import existing_folder
from radial.models.checkpoint import INDEX, MODULAR_INDEX, NOT_DRIVEN, check_checkpoint, index_in
from radial.models.hub.large_file import LargeFile, make_bar
from radial.models.table import nearest

_TELL_SECONDS = 0.5
_BROKE_OFF = (
    "the download of {source} broke off: {why}; what came is kept, and it goes on from there when it is started again"
)
_AT_ONCE = 4  # large files that come at the same time
SPARE_BYTES = 1 << 30  # that stay free on the disk
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf", ".pb", ".tflite")
_CONFIGS = ("transformer/config.json", "vae/config.json")  # by which a model is known beside its index
_TRANSFORMERS_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_VARIANT = re.compile(r"\.(fp16|fp32|bf16|ema|non_ema|int8|fp8)[.-]")

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Download:
    """What of a hub model is to come: the files, the large ones of them that are not here or not whole, the bytes that
    are missing, and those that are here already."""

    source: str
    files: tuple[str, ...]
    large: tuple[LargeFile, ...]
    missing: int
    present: int

    @property
    def total(self) -> int:
        """Bytes of all its files."""
        return self.missing + self.present


def cached_folder(source: str) -> Path | None:
    """Where a hub model's files lie, all of them or some; a quick look."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(source, name) for name in (INDEX, MODULAR_INDEX))
    return next((Path(one).parent for one in found if isinstance(one, str)), None)


def config_folder(source: str, *, online: bool = True) -> Path:
    """The folder with a hub model's configurations, which take a few kilobytes and are fetched where they are not here.

    Args:
        online: whether the hub may be asked.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached, is not to be asked or wants a login.
    """
    import huggingface_hub

    here = cached_folder(source)
    if here is not None and all((here / name).is_file() for name in _CONFIGS):
        return here
    if not online:
        raise ModelError(f"there is no model {source} here")
    check_online(source)
    with _hub_errors(source):
        wanted = [INDEX, MODULAR_INDEX, "*/config.json", "*/*er_config.json"]
        bar = _bar_of_small(lambda _: None)
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=wanted, tqdm_class=bar))


def find_local(source: str, without: tuple[str, ...] = ()) -> Path | None:
    """The folder of a hub model whose files are all on this machine; the hub is not asked.

    Args:
        without: components whose weights are not wanted.
    """
    import diffusers

    folder = cached_folder(source)
    if without or (folder is not None and _is_modular(folder)):
        return folder if folder is not None and is_whole(folder, without) else None
    try:
        return Path(diffusers.DiffusionPipeline.download(source, use_safetensors=True, local_files_only=True))
    except Exception:  # the hub's client raises many kinds for what is not there
        return None


def download_size_of(source: str, without: tuple[str, ...] = ()) -> Download:
    """Ask the hub what a model's files are, and look which of them are here.

    Args:
        without: components whose weights are not wanted.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached or wants a login.
    """

    def choose(sizes: dict[str, int]) -> tuple[str, ...]:
        files = tuple(sorted(name for name in sizes if is_wanted(name, sizes, without)))
        if not {INDEX, MODULAR_INDEX} & set(files):
            raise ModelError(f"{source} is no diffusers checkpoint: it has no {INDEX} and no {MODULAR_INDEX}")
        return files

    return plan(source, choose)


def plan(source: str, choose: Callable[[dict[str, int]], tuple[str, ...]]) -> Download:
    """What is to come of a hub model's files.

    Args:
        choose: which files are wanted, of those there are with their bytes.
    """
    import huggingface_hub
    from huggingface_hub import constants

    check_online(source)
    with _hub_errors(source):
        info = huggingface_hub.HfApi().model_info(source, files_metadata=True)
        if info.gated:  # its files are, which else would be said at the first of them
            huggingface_hub.auth_check(source)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        files = choose(sizes)
        planned: Any = huggingface_hub.snapshot_download(
            source, revision=info.sha, allow_patterns=list(files), dry_run=True,
            tqdm_class=_bar_of_small(lambda _: None),
        )  # fmt: skip
    missing = {file.filename: file.file_size or 0 for file in planned if file.will_download}
    large = tuple({
        file.lfs.sha256: LargeFile(source, info.sha or "main", file.rfilename, file.lfs.sha256, file.lfs.size)
        for file in info.siblings or []
        if file.rfilename in missing and file.lfs is not None and file.lfs.size < constants.MAX_HTTP_DOWNLOAD_SIZE
    }.values())  # fmt: skip
    still = sum(missing.values()) - sum(file.here for file in large)
    return Download(source, files, large, still, sum(sizes[name] for name in files) - still)


def check_disk(download: Download) -> None:
    """Refuse what does not fit on the disk.

    Raises:
        OutputError: it does not.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(existing_folder(cache)).free
    if download.missing + SPARE_BYTES > free and download.missing:
        raise OutputError(
            f"{download.source} needs {download.missing / 1e9:.1f} GB more, and {cache} has {free / 1e9:.1f} GB free; "
            "free some, or set HF_HOME to a folder on another disk"
        )


def download(
    source: str, on_progress: OnProgress = lambda done, total: None, planned: Download | None = None,
    without: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """Fetch what is missing of a hub model: its folder.

    Args:
        without: components whose weights are not wanted.
        planned: what :func:`download_size_of` said of it, where that was asked already.
        on_progress: told the bytes that are here and those of the whole, now and then; what it raises stops the
            download.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached, or the download broke off.
        OutputError: the disk is too small.
    """
    import diffusers

    planned = planned or download_size_of(source, without)
    folder = follow(planned, on_progress)
    if not without and not _is_modular(folder):  # whatever else the pipeline's class wants; it is next to nothing
        with _hub_errors(source, _BROKE_OFF):
            folder = Path(diffusers.DiffusionPipeline.download(source, use_safetensors=True))
    on_progress(planned.total, planned.total)
    return folder


def fetch_file(source: str, name: str) -> Path:
    """A small file of a repository on the hub, fetched where it is not here; as :func:`config_folder` it raises."""
    import huggingface_hub

    if isinstance(here := huggingface_hub.try_to_load_from_cache(source, name), str):
        return Path(here)
    check_online(source)
    with _hub_errors(source):
        return Path(huggingface_hub.hf_hub_download(source, name, tqdm_class=_bar_of_small(lambda _: None)))


def transformers_folder(source: str, on_progress: OnProgress = lambda done, total: None) -> Path:
    """The folder of a hub model of transformers, whose files lie beside each other; what is missing is fetched.

    Args:
        on_progress: as for :func:`download`.

    Raises:
        ModelError: there is no such model, it has no weights as safetensors, or the hub cannot be reached.
        OutputError: the disk is too small.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json")
    if isinstance(found, str) and _has_shards(Path(found).parent):
        return Path(found).parent

    def choose(sizes: dict[str, int]) -> tuple[str, ...]:
        weights = {name for name in sizes if _TRANSFORMERS_WEIGHTS.fullmatch(name)}
        small = {n for n in sizes if "/" not in n and n.endswith((".json", ".jinja", ".txt", ".model"))}
        files = tuple(sorted(weights | small))
        if "config.json" not in small or not weights:
            raise ModelError(f"{source} is no model of transformers with weights as safetensors")
        return files

    planned = plan(source, choose)
    folder = follow(planned, on_progress)
    on_progress(planned.total, planned.total)
    return folder


def _has_shards(folder: Path) -> bool:
    """Whether the weights of a model of transformers are all here; they come last."""
    try:
        index = folder / "model.safetensors.index.json"
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else None
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).is_file() for name in names or ["model.safetensors"])


def follow(planned: Download, on_progress: OnProgress) -> Path:
    """Fetch what is missing, and tell of it meanwhile: the folder."""
    check_disk(planned)
    progress = _Progress(planned.present)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(_fetch, planned, progress)
        try:
            while not wait([coming], _TELL_SECONDS).done:
                on_progress(min(progress.done, planned.total), planned.total)
        except BaseException:
            progress.stop = True
            raise
    with _hub_errors(planned.source, _BROKE_OFF):
        return Path(coming.result())


def _fetch(planned: Download, progress: _Progress) -> str:
    """Fetch the small files by the hub's client, and the large ones: the folder."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import are_symlinks_supported

    # Without links the client would keep what it did not fetch itself twice.
    large = planned.large if are_symlinks_supported() else ()
    names = {file.name for file in large}
    bar = _bar_of_small(progress.count)
    # The small ones first: by them the cache knows the model, and can delete it again.
    folder: str = huggingface_hub.snapshot_download(
        planned.source, allow_patterns=[name for name in planned.files if name not in names], tqdm_class=bar
    )
    if not large:
        return folder
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        coming = [threads.submit(file.fetch, progress.count) for file in large]
        try:
            for one in as_completed(coming):
                with contextlib.suppress(HfHubHTTPError):  # the client below says it, or knows a way
                    one.result()
        except BaseException:
            progress.stop = True
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    folder = huggingface_hub.snapshot_download(planned.source, allow_patterns=list(planned.files), tqdm_class=bar)
    return folder


def _bar_of_small(count: Callable[[int], None]) -> Any:
    return make_bar(count, "huggingface_hub.snapshot_download")


class _Progress:
    """Bytes that came, counted in the client's threads; they end where ``stop`` is set."""

    def __init__(self, done: int) -> None:
        self.done, self.stop = done, False
        self._lock = threading.Lock()

    def count(self, step: int) -> None:
        if self.stop:
            raise InterruptedError("the download was stopped")
        with self._lock:
            self.done += step


def check_online(source: str) -> None:
    """Raise where downloads are switched off.

    Raises:
        ModelError: they are.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise ModelError(
            f"there is no folder {source} here, and the Hugging Face hub is not asked: --offline or HF_HUB_OFFLINE"
        )


def set_offline() -> None:
    """Switch downloads off, for this process and those that it starts. Call it before a model is loaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub.constants" in sys.modules:  # it has read the variable
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def _hub_errors(
    source: str, otherwise: str = "there is no folder {source} here, and the Hugging Face hub cannot be reached: {why}"
) -> Iterator[None]:
    """What the hub's client raises meanwhile, in words of ours."""
    from huggingface_hub import errors

    try:
        yield
    except RadialError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{source} wants you to accept its terms: do so on its page of the hub, then `hf auth login` here"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no folder {source} here, and the Hugging Face hub has no such model{nearest(source)}; `radial "
            "models` lists the models with a name"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise OutputError(error.errno, f"the download of {source} stopped: {error.strerror}") from error
        raise ModelError(otherwise.format(source=source, why=first_line(error))) from error


def is_whole(folder: Path, without: tuple[str, ...]) -> bool:
    """Whether no file is missing that a component's list of shards names, nor any component's weights.

    Args:
        without: components whose weights are not wanted.
    """
    try:
        check_checkpoint(folder, without)
        for index in folder.glob("*/*.safetensors.index.json"):
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if index.parent.name not in without and not all((index.parent / name).is_file() for name in names):
                return False
    except (RadialError, OSError, ValueError, KeyError):
        return False
    return True


def _is_modular(folder: Path) -> bool:
    """Whether a checkpoint is of a modular pipeline, whose components alone are loaded."""
    return index_in(folder).name == MODULAR_INDEX


def is_wanted(name: str, sizes: dict[str, int], without: tuple[str, ...] = ()) -> bool:
    """Whether a file is of a safetensors checkpoint in the layout of diffusers: no other formats, no second precision
    where there is a first."""
    folder, _, file = name.rpartition("/")
    if not folder:
        return name in (INDEX, MODULAR_INDEX, "config.json", "scheduler_config.json")
    if "/" in folder or f"{folder}/{file}".startswith(".") or folder in NOT_DRIVEN:
        return False
    if folder in without:
        return file == "config.json"
    if file.endswith((".safetensors", ".safetensors.index.json")):
        plain = any(
            other.startswith(f"{folder}/") and other.endswith(".safetensors") and not _VARIANT.search(other)
            for other in sizes
        )
        return not (plain and _VARIANT.search(file))
    return not (file.endswith(_WEIGHTS) or ".index." in file or file.endswith((".py", ".md", ".mp4", ".png", ".jpg")))
