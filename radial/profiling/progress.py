"""What a profile has measured so far, as a file that every number is added to as it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from radial.errors import OutputError, RequestError
from radial.files import publish_text

Place = tuple[int, int, int, int]  # prompt, part of the run, layer, planner


class Progress:
    """The numbers of one profile.

    Attributes:
        path: where they are kept, until the profile is whole.
        errors: by prompt, part, layer and planner.
        seconds: of a call with all layers alike, by planner, first dense; empty before they are measured.
    """

    def __init__(self, path: Path, about: str) -> None:
        """Go on with what is there.

        Args:
            about: what is measured, and of what: numbers of another profile must not be taken up.

        Raises:
            RequestError: what is there is of another profile.
            OutputError: the place cannot be written.
        """
        self.path = path
        self.errors: dict[Place, float] = {}
        self.seconds: list[float] = []
        lines = self._lines()
        if lines and lines[0] != {"about": about}:
            raise RequestError(
                f"{path} is of a profile with other settings: go on with those, remove it, or give another --output"
            )
        for line in lines[1:]:
            self._take(line)
        # Anew, as the end of the last line may be missing.
        publish_text(path, "".join(f"{json.dumps(line)}\n" for line in lines or [{"about": about}]))

    def add(self, place: Place, error: float) -> None:
        """Keep a number."""
        self._append({"place": place, "error": error})

    def add_seconds(self, seconds: list[float]) -> None:
        """Keep how long calls take."""
        self._append({"seconds": seconds})

    def _append(self, line: dict[str, Any]) -> None:
        self._take(line)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line)}\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def _take(self, line: dict[str, Any]) -> None:
        if "seconds" in line:
            self.seconds = list(line["seconds"])
        else:
            prompt, part, layer, planner = line["place"]
            self.errors[prompt, part, layer, planner] = float(line["error"])

    def _lines(self) -> list[dict[str, Any]]:
        """Those that are whole."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}") from error
        whole = text[: text.rfind("\n") + 1].splitlines()
        try:
            return [json.loads(line) for line in whole]
        except ValueError as error:
            raise RequestError(f"{self.path} is broken: remove it, and the profile begins anew") from error
