"""What clips are told to show: captions beside files and in tables, several of them, and variants of their tags."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radial.errors import RequestError, first_line
from radial.files import decode_text

CAPTION_COLUMNS = ("captions", "caption", "text", "txt", "prompt")
MOST_CAPTIONS = 64  # of a clip: each is encoded and kept


@dataclass(frozen=True)
class TagVariants:
    """Further captions made of one that is a list of tags with commas between: as text is encoded once, each is encoded
    and a step draws one of them.

    Attributes:
        count: captions in all, the one that is there among them.
        dropout: how likely a tag is left out of a variant.
        keep: tags at the beginning that stay there, such as a trigger word.
    """

    count: int
    dropout: float = 0.0
    keep: int = 0
    seed: int = 0

    def of(self, captions: tuple[str, ...]) -> tuple[str, ...]:
        """The captions, each followed by its variants; the same again for the same captions and seed."""
        return check_count(tuple(dict.fromkeys(one for caption in captions for one in self._variants(caption))))

    def _variants(self, caption: str) -> list[str]:
        tags = [tag for tag in (part.strip() for part in caption.split(",")) if tag]
        kept, free = tags[: self.keep], tags[self.keep :]
        if len(free) < 2:
            return [caption]
        rng = random.Random(f"{self.seed} {caption}")
        found = [caption]
        for _ in range(self.count - 1):
            left = [tag for tag in free if rng.random() >= self.dropout] or [rng.choice(free)]
            rng.shuffle(left)
            found.append(", ".join([*kept, *left]))
        return found


def find_sidecars(files: list[Path]) -> dict[Path, list[Path]]:
    """The texts beside clips: ``fox.txt``, and ``fox.1.txt``, ``fox.2.txt`` by their numbers, unless there is a clip
    ``fox.1`` to which they belong."""
    stems = {file.with_suffix("") for file in files}
    numbered: dict[Path, list[tuple[int, Path]]] = {}
    for folder in {file.parent for file in files}:
        for text in folder.glob("*.txt"):
            stem, _, number = text.stem.rpartition(".")
            if stem and number.isascii() and number.isdigit() and text.with_suffix("") not in stems:
                numbered.setdefault(folder / stem, []).append((int(number), text))
    found = {}
    for file in files:
        plain = file.with_suffix(".txt")
        further = [text for _, text in sorted(numbered.get(file.with_suffix(""), []))]
        found[file] = [*([plain] if plain.is_file() else []), *further]
    return found


def read_sidecars(files: list[Path], *, whole: bool) -> tuple[str, ...]:
    """The captions in texts beside a clip, a line each, or each text as one.

    Raises:
        RequestError: a text cannot be read or is empty, or there are too many captions.
    """
    found: list[str] = []
    for file in files:
        try:
            content = decode_text(file.read_bytes())
        except OSError as error:
            raise RequestError(f"cannot read the caption {file}: {first_line(error)}") from error
        except ValueError as error:
            raise RequestError(f"the caption {file} {error}") from error
        captions = split_lines(content, whole=whole)
        if not captions:
            raise RequestError(f"the caption {file} is empty; say what the clip shows")
        found += captions
    return check_count(tuple(dict.fromkeys(found)), f"{files[0]}: ")


def captions_of(row: dict[str, Any], *, whole: bool) -> tuple[str, ...]:
    """The captions that a row of a table or dataset names: a text, or a list of texts; none where it has no such
    column."""
    for column in CAPTION_COLUMNS:
        told = row.get(column)
        texts: list[Any] = told if isinstance(told, list) else [told]
        if texts and all(isinstance(text, str) for text in texts):
            lines = [line for text in texts for line in split_lines(text, whole=whole)]
            return check_count(tuple(dict.fromkeys(lines)) or ("",), f"column {column}: ")
    if isinstance(row.get("json"), dict):  # WebDataset's own place for what is known of a sample
        return captions_of(row["json"], whole=whole)
    return ()


def split_lines(text: str, *, whole: bool) -> list[str]:
    """A text as captions: a line each, empty ones left out; or as one."""
    parts = [text] if whole else text.split("\n")
    return [part for part in (part.strip() for part in parts) if part]


def check_count(captions: tuple[str, ...], where: str = "") -> tuple[str, ...]:
    """The captions.

    Raises:
        RequestError: there are more than a clip can have.
    """
    if len(captions) > MOST_CAPTIONS:
        raise RequestError(
            f"{where}{len(captions)} captions for one clip, and {MOST_CAPTIONS} are most; --whole-captions takes the "
            "lines of a text as one"
        )
    return captions
