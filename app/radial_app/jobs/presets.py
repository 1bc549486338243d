"""Settings under a name of one's own, a YAML file each: what ``--preset`` of the command line, ``preset`` of a job file
and *Quality* of the studio mean by that name."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml

from radial.errors import OutputError, RequestError, first_line
from radial.files import publish_text
from radial.input_files import KINDS
from radial.models.table import PRESETS
from radial.request import make_request
from radial.shorthands import spell_out
from radial.yaml_file import load_yaml
from radial_app.jobs.folder import keep_private

MAX_PRESETS = 200
_MAX_BYTES = 32_000
_NAME = re.compile(r"[\w][\w .+-]{0,39}")
# What a clip is of and starts from, how many there are, and what the settings are for.
_NO_SETTINGS = (
    "prompt", "enhance", "original_prompt", "then", "seed", "num_videos", *(name for name in KINDS if name != "policy"),
    "strength", "model", "preset",
)  # fmt: skip


class Presets:
    """The settings by name of a data folder.

    Args:
        data: the data folder.
        owner: the account whose they are; those of this machine's user without one.
    """

    def __init__(self, data: Path, owner: str = "") -> None:
        self._folder = data / "presets" / "accounts" / owner if owner else data / "presets"

    def all(self) -> dict[str, dict[str, Any]]:
        """The fields of each, by name; what cannot be read is left out."""
        found = {}
        for path in sorted(self._folder.glob("*.yaml"))[:MAX_PRESETS]:
            try:
                found[path.stem] = self.get(path.stem)
            except RequestError:  # told when it is asked for by name
                continue
        return found

    def get(self, name: str) -> dict[str, Any]:
        """The fields of one.

        Raises:
            RequestError: there is none of this name, or its file holds something else.
        """
        path = self._folder / f"{name}.yaml"
        if not _NAME.fullmatch(name) or not path.is_file():
            raise RequestError(f"unknown preset {name!r}; there is {', '.join([*PRESETS, *self._names()])}")
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES // 1000} kB")
            fields, _ = load_yaml(path.read_text(encoding="utf-8"))
            return _checked(fields)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise RequestError(f"preset {name}: {first_line(error)}") from error

    def keep(self, name: str, fields: Mapping[str, Any]) -> None:
        """Keep the settings among a request's fields under a name, in place of what it meant before.

        Raises:
            RequestError: a field breaks a rule, or the name is none.
            OutputError: they cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise RequestError(f"name must be up to 40 letters, digits, spaces, dots and dashes, not {name[:60]!r}")
        if name in PRESETS:
            raise RequestError(f"name {name} is that of a preset for few-step adapters: take another")
        if name not in (known := self._names()) and len(known) >= MAX_PRESETS:
            raise RequestError(f"there are {MAX_PRESETS} presets: forget some")
        kept = {key: value for key, value in fields.items() if key not in _NO_SETTINGS and value is not None}
        text = yaml.safe_dump(_checked(kept), allow_unicode=True, sort_keys=False)
        if len(text.encode()) > _MAX_BYTES:
            raise RequestError(f"settings of {len(text):,} letters are too many to keep")
        try:
            keep_private(self._folder.parent)
            keep_private(self._folder)
        except OSError as error:
            raise OutputError(f"cannot keep presets: {error.strerror}") from error
        publish_text(self._folder / f"{name}.yaml", text)

    def forget(self, name: str) -> None:
        """Delete one.

        Raises:
            RequestError: there is none of this name.
        """
        if name not in self._names():
            raise RequestError(f"unknown preset {name[:60]!r}; your own are {', '.join(self._names()) or 'none yet'}")
        (self._folder / f"{name}.yaml").unlink(missing_ok=True)

    def apply(self, written: Mapping[str, Any], left_open: Container[str] = ()) -> dict[str, Any]:
        """A request's fields, with the fields of one's own preset in place of its name; what is given by itself goes
        before it.

        Args:
            left_open: fields that nobody has given, whatever ``written`` holds for them.

        Raises:
            RequestError: there is no preset of the name.
        """
        name = written.get("preset")
        if name is None or str(name) in PRESETS:
            return dict(written)
        given = {key: value for key, value in written.items()
                 if key not in left_open and key != "preset" and value is not None}  # fmt: skip
        fields = {key: value for key, value in self.get(str(name)).items() if not _says_the_same(key, given)}
        return {key: value for key, value in written.items() if key != "preset"} | fields | given

    def _names(self) -> list[str]:
        return [path.stem for path in sorted(self._folder.glob("*.yaml")) if _NAME.fullmatch(path.stem)]


def _says_the_same(key: str, given: Mapping[str, Any]) -> bool:
    """Whether what is given says in other words what a preset's field says."""
    alike = ({"size", "height", "width"}, {"seconds", "num_frames"}, {"target_share", "target_speed"})
    return any(key in words and words & given.keys() for words in alike)


def _checked(fields: Any) -> dict[str, Any]:
    """The fields of a preset.

    Raises:
        RequestError: they are none.
    """
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise RequestError("a preset is lines of field: value")
    if other := next((key for key in fields if key in _NO_SETTINGS), None):
        raise RequestError(f"{other} is no setting: a preset says how clips are made, not which")
    make_request(prompt="-", **spell_out(fields))
    return dict(fields)
