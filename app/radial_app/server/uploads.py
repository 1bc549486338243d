"""What users bring over the web: images and clips they upload, adapters and checkpoints that lie in the data folder.

A web user names things by ids and names, never by paths. Uploads are judged by their content, and kept under the
digest of it; adapters and checkpoints are those in ``adapters`` and ``models``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from radial.errors import OutputError, RadialError, RequestError
from radial.files import BUNDLED, publish
from radial.input_files import KINDS, named_files, with_files
from radial.models.checkpoint import INDEX, MODULAR_INDEX, checkpoint_folder
from radial.models.find import HUB_ID, SINGLE_FILES, find_model
from radial.models.hub.download import cached_folder, is_whole
from radial.models.lora_settings import check_adapter_file
from radial.models.table import MODELS
from radial.plans.measured.policy_file import check_policy_file
from radial.request import MAX_LORAS, GenerationRequest, make_request
from radial.shorthands import SHORTHANDS, spell_out
from radial.video.images import picture_suffix
from radial_app.jobs.folder import keep_private
from radial_app.jobs.presets import Presets
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Visitor
from radial_app.server.limits.media_probe import probe

Kind = Literal["image", "clip"]
CLIPS = (".mp4", ".webm")
_IMAGES = (".png", ".jpg", ".webp", ".avif", ".heic")
_ID = re.compile(r"[0-9a-f]{32}\.(png|jpg|webp|avif|heic|mp4|webm)")
_VIDEO_ID = re.compile(r"video:([0-9a-f]{8,40})(?:/(\d{1,3}))?")
_NAME = re.compile(r"[\w][\w .+-]{0,150}")
MAX_KEPT = 4 << 30  # bytes of uploads of a visitor


@dataclass(frozen=True)
class Upload:
    """A file that a user brought: its id, what it is, its size."""

    id: str
    kind: Kind
    width: int
    height: int
    bytes: int


class Inputs:
    """What one visitor may use in requests.

    Args:
        database: of the data folder.
        visitor: who asks.
        enhancers: language models that prompts may be enhanced by, folders by the last part of their paths.
    """

    def __init__(self, database: JobStore, visitor: Visitor, enhancers: Sequence[str] = ()) -> None:
        self._database, self._visitor = database, visitor
        self.enhancers = {Path(one).name if os.path.isdir(one) else one: one for one in enhancers}
        self._folder = folder = database.folder
        self._uploads = folder / "inputs" / (visitor.name or "local")

    def take(self, content: BinaryIO) -> Upload:
        """Keep an upload.

        What a visitor brought long ago, and no job that waits needs, makes room for what is new.

        Raises:
            RequestError: it is no image and no clip that is taken here.
            OutputError: there is no room for it.
        """
        head = content.read(32)
        suffix = suffix_of(head)
        if suffix is None:
            raise RequestError("this is no PNG, JPEG, WebP, AVIF, HEIC, MP4 or WebM file")
        digest = hashlib.sha256(head)
        keep_private(self._folder / "inputs")
        keep_private(self._uploads)
        waiting = self._uploads / f".{os.getpid()}-{os.urandom(8).hex()}{suffix}"
        try:
            with waiting.open("xb") as file:
                file.write(head)
                while block := content.read(1 << 20):
                    digest.update(block)
                    file.write(block)
            found = probe("clip" if suffix in CLIPS else "image", waiting, self._visitor.name)
            path = self._uploads / f"{digest.hexdigest()[:32]}{suffix}"
            self._make_room(waiting.stat().st_size)
            waiting.rename(path)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot keep the upload: {error.strerror}") from error
        finally:
            waiting.unlink(missing_ok=True)
        kind: Kind = "clip" if suffix in CLIPS else "image"
        return Upload(path.name, kind, found["width"], found["height"], path.stat().st_size)

    def _make_room(self, size: int) -> None:
        kept = sorted((p for p in self._uploads.glob("[!.]*") if p.is_file()), key=lambda path: path.stat().st_mtime)
        over = sum(path.stat().st_size for path in kept) + size - MAX_KEPT
        if over <= 0:
            return
        needed = self._database.inputs_of_unfinished()
        for path in kept:
            if over > 0 and str(path) not in needed:
                over -= path.stat().st_size
                path.unlink(missing_ok=True)
        if over > 0:
            raise OutputError(
                f"your uploads take all of the {MAX_KEPT / 1e9:.0f} GB that are kept, and jobs that wait need them"
            )

    def upload_path(self, id_: str) -> Path:
        """Where an upload of this visitor lies.

        Raises:
            RequestError: there is none of this id.
        """
        path = self._uploads / id_ if _ID.fullmatch(id_) else None
        if path is None or not path.is_file():
            raise RequestError(f"there is no upload {id_[:200]!r}")
        return path

    def request(self, fields: dict[str, Any]) -> GenerationRequest:
        """The request that a web user's fields make, with files in place of ids and names; still unresolved.

        What :func:`spell_out` knows may stand in place of fields.

        Raises:
            RequestError: a field breaks a rule, or names what is not there.
        """
        request = make_request(**{name: value for name, value in fields.items() if name not in SHORTHANDS})
        given = request.model_dump(include={*KINDS, "model", "loras", "decoder", "enhance"}, exclude_unset=True)
        translated = self.translate({"model": request.model} | given)
        made = make_request(**spell_out(self.presets.apply(fields | translated)))
        self.check(made)
        return made

    def translate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields with files in place of the ids and names of uploads, models and adapters.

        Raises:
            RequestError: one of them is not there, or is written as something else than a name.
        """
        found = dict(fields) | with_files(fields, self._input)
        if (decoder := found.get("decoder")) not in (None, "full", "tiny"):
            raise RequestError(f"decoder must be full or tiny here, not {str(decoder)[:200]!r}: files are for commands")
        if found.get("enhance") is not None:
            found["enhance"] = self._enhancer(found["enhance"])
        if "model" in found:
            if not isinstance(found["model"], str):
                raise RequestError(f"model must be a name, not {found['model']!r:.200}")
            found["model"] = self._model(found["model"])
        if "loras" in found:
            loras = found["loras"]
            if not isinstance(loras, (list, tuple)) or not all(isinstance(lora, dict) for lora in loras):
                raise RequestError(f"loras must be a list of adapters with path and weight, not {loras!r:.200}")
            if len(loras) > MAX_LORAS:
                raise RequestError(f"loras must be at most {MAX_LORAS}, not {len(loras)}")
            adapters = self.adapters() if loras else {}
            found["loras"] = [lora | {"path": _adapter(str(lora.get("path")), adapters)} for lora in loras]
        return found

    def check(self, request: GenerationRequest, names: Container[str] = GenerationRequest.model_fields) -> None:
        """Make sure, whatever way a request came about, that the files of these fields are the visitor's to use.

        Raises:
            RequestError: one is not.
        """
        for label, path in named_files(request.model_dump()):
            name = label.partition(".")[0]
            if name in names and self._id_of(path) is None:
                raise RequestError(f"{name} names no upload and no video of yours")
        if "decoder" in names and request.decoder not in ("full", "tiny"):
            raise RequestError("decoder must be full or tiny here: files are for commands")
        if "enhance" in names and request.enhance not in (None, *self.enhancers.values()):
            raise RequestError("enhance names a language model that this server does not offer")
        brought = {one.path for one in request.loras if not one.path.startswith(BUNDLED)}
        if "loras" in names and brought and not brought <= set(map(str, self.adapters().values())):
            raise RequestError("loras name an adapter that is none of this server's")
        if "model" in names and request.model not in map(str, self.checkpoints().values()):
            self._model(request.model)

    @property
    def presets(self) -> Presets:
        """The visitor's own settings by name, files in them by where they lie."""
        return Presets(self._folder, self._visitor.name)

    def fields(self, request: GenerationRequest, notes: list[str] | None = None) -> dict[str, Any]:
        """A request as a web user writes it; files that are not this visitor's are left out, as is what goes with them.

        Args:
            notes: takes what is left out.
        """
        fields: dict[str, Any] = request.model_dump(mode="json")
        gone = [(label, path) for label, path in named_files(fields) if self._id_of(path) is None]
        fields |= with_files(fields, lambda _, path: self._id_of(path))
        without_what_goes_with(fields)
        if notes is not None:
            notes += [
                f"its {label.partition('.')[0].replace('_', ' ')} was {Path(path).name}, which is not among yours"
                for label, path in gone
            ]
        if fields["decoder"] not in ("full", "tiny"):
            del fields["decoder"]
        if fields["enhance"] is not None:
            fields["enhance"] = next((name for name, one in self.enhancers.items() if one == fields["enhance"]), None)
        if fields["enhance"] is None:
            fields["original_prompt"] = None
        if Path(fields["model"]).parent == self._folder / "models":
            fields["model"] = Path(fields["model"]).name
        return fields | {"loras": name_adapters(fields["loras"])}

    def adapters(self) -> dict[str, Path]:
        """Adapter files by name."""
        files = sorted((self._folder / "adapters").rglob("*.safetensors"))
        return {file.name: file for file in files if file.is_file() and ".trash" not in file.parts
                and not file.name.startswith(".")}  # fmt: skip

    def policies(self) -> dict[str, Path]:
        """Files of ``radial profile`` by name."""
        files = sorted((self._folder / "policies").glob("[!.]*.safetensors"))
        return {file.name: file for file in files if file.is_file()}

    def checkpoints(self) -> dict[str, Path]:
        """Checkpoint folders of one's own, and files with a transformer, by name."""
        models = self._folder / "models"
        indexes = [path for name in (INDEX, MODULAR_INDEX) for path in sorted(models.glob(f"*/{name}"))]
        folders = {path.parent.name: path.parent for path in indexes}
        files = {path.name: path for suffix in SINGLE_FILES for path in sorted(models.glob(f"[!.]*{suffix}"))}
        return {name: path for name, path in (folders | files).items() if not name.startswith(".")}

    def _enhancer(self, name: Any) -> str:
        if isinstance(name, str) and name in self.enhancers:
            return self.enhancers[name]
        offered = ", ".join(self.enhancers) or "none: its operator starts it with --enhancer MODEL"
        raise RequestError(f"enhance must be a language model of this server, not {name!r:.200}; there is {offered}")

    def _input(self, name: str, given: str) -> str:
        """The file that a field's id or name means, of a kind that the field takes."""
        if KINDS[name] == "policy":
            if (path := self.policies().get(given)) is None:
                raise RequestError(f"there is no policy {given[:200]!r}")
            return str(path)
        file = self._file(given)
        is_image = file.suffix in _IMAGES
        if ("image" if is_image else "clip") not in KINDS[name]:
            is_what = "an image, and no clip" if is_image else "a clip, and no image"
            raise RequestError(f"{name} {given} is {is_what}")
        return str(file)

    def clip(self, given: str) -> str:
        """The clip that an upload's or a video's id means.

        Raises:
            RequestError: there is none of this id, or it is an image.
        """
        file = self._file(given)
        if file.suffix in _IMAGES:
            raise RequestError(f"{given} is an image, and no clip")
        return str(file)

    def _id_of(self, path: str) -> str | None:
        if path in map(str, self.policies().values()) or Path(path).parent == self._uploads:
            return Path(path).name
        return self._video_id(path)

    def _file(self, given: str) -> Path:
        if not (match := _VIDEO_ID.fullmatch(given)):
            return self.upload_path(given)
        job = self._database.find_one(match[1])
        index = int(match[2] or 0)
        if job is None or (job.owner != self._visitor.name and not self._visitor.admin):
            raise RequestError(f"there is no video {given!r}")
        if index >= len(job.files) or not job.files[index].done or not Path(job.files[index].path).is_file():
            raise RequestError(f"there is no video {given!r}")
        return Path(job.files[index].path)

    def _video_id(self, path: str) -> str | None:
        found = self._database.job_of_file(path, self._visitor.scope)
        return f"video:{found[0]}/{found[1]}" if found else None

    def _model(self, name: str) -> str:
        if (own := self.checkpoints().get(name)) is not None and name not in MODELS:
            return str(own)
        if name not in MODELS and not (HUB_ID.fullmatch(name) and ".." not in name and not Path(name).exists()):
            raise RequestError(f"unknown model {name[:200]!r}: it is none that is listed, and no hub id like org/name")
        if not self._visitor.admin and not is_here(name):
            here = ", ".join(one for one in (*self.checkpoints(), *MODELS) if one not in MODELS or is_here(one))
            raise RequestError(f"model {name} is not on this server, and only admins download models; there is {here}")
        return name


def without_what_goes_with(fields: dict[str, Any]) -> None:
    """Leave out what means nothing without the file that it goes with."""
    if fields["control_video"] is None:
        fields["strength"] = None
    if fields["background_video"] is None and (fields["control_video"] is None or fields["face_video"] is not None):
        fields["mask"] = None
    if fields["mask"] is None:
        fields["background_video"] = None
    if fields["image"] is None and fields["extend"] is None:
        fields["last_image"] = None
    if fields["policy"] is None:
        fields["target_share"] = fields["target_speed"] = None


def name_adapters(loras: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adapters by names in place of paths."""
    return [lora if lora["path"].startswith(BUNDLED) else lora | {"path": Path(lora["path"]).name} for lora in loras]


def _adapter(name: str, adapters: dict[str, Path]) -> str:
    if name.startswith(BUNDLED):
        return name
    if (path := adapters.get(name)) is None or not _NAME.fullmatch(name):
        raise RequestError(f"there is no adapter {name[:200]!r}")
    return str(path)


def take_adapter(folder: Path, name: str, source: Path) -> str:
    """Put an adapter file into the data folder, under a name of its own: that name.

    Raises:
        RequestError: it is no adapter of safetensors.
        OutputError: it cannot be written.
    """
    check_adapter_file(source)
    return _take(folder / "adapters", name, source)


def take_policy(folder: Path, name: str, source: Path) -> str:
    """Put a file of ``radial profile`` into the data folder, likewise.

    Raises:
        RequestError: it is none.
        OutputError: it cannot be written.
    """
    check_policy_file(source)
    return _take(folder / "policies", name, source)


def _take(folder: Path, name: str, source: Path) -> str:
    safe = re.sub(r"[^\w.+-]+", "-", Path(name).stem).strip("-.")[:100] or folder.name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{safe}.safetensors"
    publish(target, lambda partial: shutil.copyfile(source, partial), overwrite=True)
    return target.name


def suffix_of(head: bytes) -> str | None:
    """The kind of a file by how it begins; formats that can name other files are not among them."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if head.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:8] == b"ftyp":
        return picture_suffix(head) or ".mp4"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return ".webm"
    return None


def is_here(name: str) -> bool:
    """Whether a model with a name, or of the hub, can be loaded without a download."""
    try:
        spec = find_model(name, online=False)
        folder = checkpoint_folder(spec) or cached_folder(spec.source)
    except RadialError:
        return False
    return folder is not None and is_whole(folder, spec.own_components)
