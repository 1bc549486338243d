"""Large files of a hub model, which go on within the file where they were cut off.

The hub's client takes up connections that break, but of a download that ends it keeps whole files only; those of a
video model have up to ten gigabytes. A file that came whole lies in the client's cache, as if that had fetched it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from radial.errors import ModelError

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class LargeFile:
    """A file that a hub keeps by its content.

    Attributes:
        source: the model's hub id.
        revision: the commit that it is of.
        name: the file's, within the model.
        sha256: its content's, by which the client's cache names it, too.
        size: in bytes.
    """

    source: str
    revision: str
    name: str
    sha256: str
    size: int

    @property
    def path(self) -> Path:
        """Where it lies in the cache once it is whole."""
        return self._repository / "blobs" / self.sha256

    @property
    def part(self) -> Path:
        """Where it lies before."""
        return self.path.with_name(f"{self.sha256}.incomplete")

    @property
    def here(self) -> int:
        """Bytes that need not come any more."""
        for path in (self.path, self.part):
            if path.is_file():
                size = path.stat().st_size
                return size if size <= self.size else 0
        return 0

    @property
    def _repository(self) -> Path:
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.file_download import repo_folder_name

        return Path(HF_HUB_CACHE) / repo_folder_name(repo_id=self.source, repo_type="model")

    def fetch(self, on_bytes: OnBytes) -> None:
        """Fetch what is missing.

        Args:
            on_bytes: told how many bytes came, now and then also that none did; what it raises stops the download.

        Raises:
            ModelError: what came is not what the hub has.
            Exception: of the hub's client, and of the disk.
        """
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        # The client's own lock: two programs that fetch a file take turns, and the second one finds it whole.
        lock = self._repository.parent / ".locks" / self._repository.name / f"{self.sha256}.lock"
        for folder in (lock.parent, self.part.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as turn:
            while True:
                try:
                    turn.enter_context(WeakFileLock(lock, timeout=1))
                    break
                except Timeout:
                    on_bytes(0)
            if not self.path.exists():
                self._fetch(on_bytes)

    def _fetch(self, on_bytes: OnBytes) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        if not self.here:  # a part that is longer than the file is none
            self.part.unlink(missing_ok=True)
        with self.part.open("ab") as file:
            http_get(
                hf_hub_url(self.source, self.name, revision=self.revision), file, resume_size=file.tell(),
                headers=build_hf_headers(), expected_size=self.size, tqdm_class=make_bar(on_bytes),
            )  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        found = hashlib.sha256()
        with self.part.open("rb") as file:
            while block := file.read(1 << 24):
                found.update(block)
                on_bytes(0)
        if found.hexdigest() != self.sha256:
            self.part.unlink()
            raise ModelError(f"{self.name} of {self.source} came damaged and was thrown away; start the download again")
        self.part.replace(self.path)


def make_bar(on_bytes: OnBytes, name: str | None = None) -> type:
    """A progress bar for the hub's client that shows nothing, and passes on the bytes that bars of a name count; a
    file's has none."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            self._counts = options.pop("name", None) == name
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                on_bytes(int(n or 0))
            return super().update(n)

    return Bar
