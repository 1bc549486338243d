"""Videos reach their names exactly once, whatever dies in between.

A finished video is encoded to a hidden file named after its job; its digest and the name it is to have are recorded;
then the file gets that name; then the record says so. Whoever takes the job up again finds out from the record and the
files which of these steps were made.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from radial.errors import OutputError
from radial.files import discard, rename_to_free_name, replace_with, sync
from radial.input_files import with_files
from radial.video.clip import Video, read_frames, read_receipt
from radial.video.encoding import Encoding, even_sides, is_playable
from radial.video.film import Film
from radial.video.finishing.finish import finish
from radial.video.finishing.steps import make_finish
from radial.video.reader import open_clip
from radial.video.sound import read_sound
from radial_app.jobs.job import Job, ResultFile
from radial_app.jobs.store import JobStore

# Failures that pass by themselves.
PASSING = {errno.ENOSPC: "disk space", errno.EDQUOT: "disk space", errno.EBUSY: "what another process has"}


def publish_once(
    store: JobStore, job: Job, index: int, video: Video | Film, seconds: float, *, partial_clip: bool = False
) -> ResultFile:
    """Give a job's video its name; ``partial_clip`` where its user ended it early.

    Raises:
        OutputError: the place cannot be written; nothing is left there.
    """
    request = job.single(index)
    wanted = _former(job, index) or _wanted(job, index)
    partial = _partial(job, index, wanted)
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        discard(partial)
        video.encode(partial, job.output.encoding)
        sync(partial)
        digest = digest_file(partial)
        file = ResultFile(str(wanted.absolute()), digest, request.seed, round(seconds, 2), partial=partial_clip)
        store.record_receipt(job.id, index, video.receipt)
        file = _give_name(store, job, index, file, partial)
        if isinstance(video, Video):  # a film is always one that browsers play
            _write_proxy(video, Path(file.path), job.output.encoding)
        elif index >= job.renders:
            _write_finished_proxy(Path(file.path))
    except Exception as error:
        discard(partial)
        if isinstance(error, OutputError) or not isinstance(error, OSError):
            raise
        problem = OutputError(f"cannot write {wanted}: {error.strerror or error}")
        problem.errno = error.errno
        raise problem from error
    return file


def settle(store: JobStore, job: Job, index: int) -> ResultFile | None:
    """What an earlier attempt left of a job's video: the file with its name, given now if need be; else None."""
    if index >= len(job.files):
        return None
    file = job.files[index]
    if file.partial:  # the rest is wanted after all
        return None
    if file.done:
        _write_missing_proxy(job, index, Path(file.path))
        return file
    path, partial = Path(file.path), _partial(job, index, Path(file.path))
    if path.exists() and digest_file(path) == file.digest:
        discard(partial)
        file = replace(file, done=True)
        store.record_file(job.id, index, file)
        _write_missing_proxy(job, index, path)
        return file
    if partial.exists() and digest_file(partial) == file.digest:
        if path.is_file() and path.stat().st_size == 0:  # claimed, where there are no hard links, and not filled
            path.unlink()
        file = _give_name(store, job, index, file, partial)
        _write_missing_proxy(job, index, Path(file.path))
        return file
    return None


def _give_name(store: JobStore, job: Job, index: int, file: ResultFile, partial: Path) -> ResultFile:
    wanted = Path(file.path)
    while True:
        replaces = (job.output.overwrite or wanted == _former(job, index)) and not _is_source(job, wanted)
        path = wanted if replaces else free_name(wanted)
        file = replace(file, path=str(path))
        store.record_file(job.id, index, file)
        try:
            if replaces:
                replace_with(partial, path)
            else:
                rename_to_free_name(partial, path)
            break
        except FileExistsError:
            continue
    discard(partial)
    file = replace(file, done=True)
    store.record_file(job.id, index, file)
    return file


def _wanted(job: Job, index: int) -> Path:
    """The name that a video should have: of one that is finished after it was rendered, that of what it was made of."""
    if 0 < job.renders <= index:
        master = Path(job.files[index - job.renders].path)
        return master.with_name(f"{master.stem}-finished.mp4")
    return job.output.path(job.name_values(job.single(index), index), shorten=True)


def _is_source(job: Job, path: Path) -> bool:
    """Whether a clip lies there that a job finishes, which is kept as it is."""
    clips = job.finish.clips if job.finish is not None else ()
    return path.exists() and any(Path(clip).exists() and path.samefile(clip) for clip in clips)


def _former(job: Job, index: int) -> Path | None:
    """Where a film lies that its user had ended early, and of which the whole one begins with the same pieces; None of
    clips, whose parts are others, and where the file is another by now."""
    file = job.files[index] if job.story is not None and index < len(job.files) else None
    if file is None or not (file.partial and file.done and Path(file.path).is_file()):
        return None
    return Path(file.path) if digest_file(Path(file.path)) == file.digest else None


def _write_proxy(video: Video, path: Path, encoding: Encoding) -> None:
    """A copy for browsers of a clip that they cannot play."""
    height, width = video.frames.shape[1:3]
    if encoding.format != "mp4" or is_playable(encoding.chosen_codec, height, width):
        return
    copy = replace(video, frames=even_sides(video.frames))
    copy.write(proxy_path(path), encoding=Encoding(metadata=encoding.metadata, crf=20), overwrite=True)


def _write_finished_proxy(path: Path) -> None:
    """A copy for browsers of a finished clip whose sides are odd."""
    if not path.is_file() or proxy_path(path).exists():
        return
    with open_clip(path) as clip:
        stream = clip.container.streams.video[0]
        height, width = stream.height, stream.width
    if not is_playable("h264", height, width):
        even = make_finish(size=f"{width + width % 2}x{height + height % 2}")
        finish([path], proxy_path(path), even, encoding=Encoding(crf=20), overwrite=True)


def _write_missing_proxy(job: Job, index: int, path: Path) -> None:
    """The browsers' copy of a clip that was named by an attempt which ended before it had made one."""
    encoding = job.output.encoding
    if index >= job.renders:
        _write_finished_proxy(path)
        return
    if job.story is not None or encoding.format != "mp4" or proxy_path(path).exists() or not path.is_file():
        return
    height, width = job.request.clip_height, job.request.clip_width
    if not is_playable(encoding.chosen_codec, height, width):
        receipt = read_receipt(path) if encoding.metadata else {}
        video = Video(read_frames(path), job.request.fps or 1, receipt, read_sound(path))
        _write_proxy(video, path, encoding)


def proxy_path(path: Path) -> Path:
    """Where the browsers' copy of a clip lies."""
    return path.with_name(f"{path.stem}.proxy.mp4")


def _partial(job: Job, index: int, path: Path) -> Path:
    return path.with_name(f".{job.id}-{index}.partial{path.suffix}")


def digest_file(path: Path) -> str:
    """A digest of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.name.encode() if path.is_dir() else b"")
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def without_home_paths(video: Video | Film) -> Video | Film:
    """A video whose receipt does not tell the name of whose home its inputs lie in."""
    if not isinstance(request := video.receipt.get("request"), dict):  # a finished clip that was not made here
        return video
    changes = with_files(request, lambda _, path: _from_home(path))
    changes |= {name: _from_home(request[name]) for name in ("model", "enhance") if name in request}
    loras = [lora | {"path": _from_home(lora["path"])} for lora in request["loras"]]
    return replace(video, receipt=video.receipt | {"request": request | changes | {"loras": loras}})


def _from_home(path: str | None) -> str | None:
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path is not None and home != "/" and path.startswith(f"{home}/") else path


def free_name(path: Path, taken: Container[Path] = ()) -> Path:
    """The path itself, or the first of path-2, path-3, ... that does not exist and is not ``taken``."""
    candidate, count = path, 2
    while candidate.exists() or candidate in taken:
        candidate, count = path.with_stem(f"{path.stem}-{count}"), count + 1
    return candidate
