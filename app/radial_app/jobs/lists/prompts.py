"""Prompts that stand for several: choices, wildcards, and how to write their signs as they are.

``{a|b}`` stands for each of its words, also within another choice; ``{name}`` for each word of a wildcard; ``__name__``
for one of them, drawn. A backslash before ``{ } | # _`` has it stand for itself, and a prompt that is a JSON object is
one as it is.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from radial.errors import RequestError
from radial.files import decode_text

_SIGNS = "{}|#_"
_HIDDEN = {sign: chr(0xE000 + index) for index, sign in enumerate(_SIGNS)}  # while a prompt is worked on
_WILDCARD = re.compile(r"__([A-Za-z0-9_-]+?)__")
_MOST_DEEP = 20
MAX_PROMPTS = 100_000


@dataclass(frozen=True)
class _Choice:
    """Of several sequences of text and choices."""

    options: tuple[tuple[str | _Choice, ...], ...]


def expand_prompt(prompt: str, wildcards: Mapping[str, list[str]], warnings: list[str]) -> Iterator[str]:
    """All prompts that a prompt stands for, signs that are meant as such still hidden: :func:`draw_words` shows them.

    Args:
        warnings: takes what looks like a slip.

    Raises:
        RequestError: choices lie too deep in each other.
    """
    if _is_json(prompt):
        yield _hide(prompt, _SIGNS)
        return
    text = re.sub(rf"\\([{re.escape(_SIGNS)}])", lambda match: _HIDDEN[match[1]], prompt)
    open_at, alone = [], []
    for at, sign in enumerate(text):
        if sign == "{":
            open_at.append(at)
        elif sign == "}" and not open_at:
            alone.append(at)
        elif sign == "}":
            open_at.pop()
    single = {*open_at, *alone}
    for sign in dict.fromkeys(text[at] for at in sorted(single)):
        warnings.append(
            f"{sign} without its other half is taken as it is in {prompt[:60]!r}; \\{sign} would say that it is meant"
        )
    text = "".join(_HIDDEN[sign] if at in single else sign for at, sign in enumerate(text))
    sequence, _ = _parse(re.findall(r"[{}|]|[^{}|]+", text), 0, wildcards, 0)
    if (count := _count(sequence)) > MAX_PROMPTS:
        raise RequestError(f"one prompt stands for {MAX_PROMPTS:,} at most, and this one for {count:,}")
    yield from _words(sequence)


def draw_words(prompt: str, wildcards: Mapping[str, list[str]], folder: Path | None, salt: str) -> str:
    """``__name__`` as one of the wildcard's words, or of the lines of ``name.txt`` in a folder, where there is one; the
    same every time.

    Raises:
        RequestError: there is no such wildcard.
    """
    dice = random.Random(f"0 {salt} {_show(prompt)}")

    def pick(match: re.Match[str]) -> str:
        name = match[1]
        options = wildcards.get(name)
        if options is None and folder is not None and (folder / f"{name}.txt").is_file():
            try:
                text = decode_text((folder / f"{name}.txt").read_bytes())
            except ValueError as error:
                raise RequestError(f"the wildcard {name}.txt {error}") from error
            options = [line for _, line in numbered_lines(text)]
        if not options:
            known = f"; known are {', '.join(wildcards)}" if wildcards else ""
            beside = "" if folder is None else f", and no {name}.txt beside the job file"
            raise RequestError(f"no wildcard {name!r}{beside}{known}; write \\_ for a plain _")
        return dice.choice(options)

    return _show(_WILDCARD.sub(pick, prompt))


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that say something, with their numbers; those that begin with # do not. A line ends at a line
    feed alone, whatever else looks like an end."""
    for number, line in enumerate(text.split("\n"), 1):
        if (said := line.removesuffix("\r").strip()) and not said.startswith("#"):
            yield number, said


def _is_json(prompt: str) -> bool:
    try:
        return isinstance(json.loads(prompt), dict)
    except (ValueError, RecursionError):
        return False


def _hide(text: str, signs: str) -> str:
    return "".join(_HIDDEN[sign] if sign in signs else sign for sign in text)


def _show(text: str) -> str:
    for sign, hidden in _HIDDEN.items():
        text = text.replace(hidden, sign)
    return text


def _parse(
    tokens: list[str], at: int, wildcards: Mapping[str, list[str]], depth: int
) -> tuple[tuple[str | _Choice, ...], int]:
    """A sequence from a token on, to the end of the prompt or of the option that it is, and where that is."""
    if depth > _MOST_DEEP:
        raise RequestError(f"choices lie more than {_MOST_DEEP} deep in each other")
    parts: list[str | _Choice] = []
    while at < len(tokens) and not (depth and tokens[at] in "|}"):
        if tokens[at] != "{":
            parts.append(tokens[at])
            at += 1
            continue
        options = []
        while tokens[at] != "}":  # all braces have their other half
            option, at = _parse(tokens, at + 1, wildcards, depth + 1)
            options.append(option)
        at += 1
        words = wildcards.get("".join(map(str, options[0])), ()) if len(options) == 1 else ()
        if len(options) > 1:
            parts.append(_Choice(tuple(_stripped(option) for option in options)))
        elif words:
            parts.append(_Choice(tuple((_hide(word, "{}|#"),) for word in words)))
        else:
            parts += ["{", *options[0], "}"]
    return tuple(parts), at


def _stripped(option: tuple[str | _Choice, ...]) -> tuple[str | _Choice, ...]:
    """An option without the space around it."""
    parts = list(option)
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return tuple(parts)


def _words(sequence: tuple[str | _Choice, ...]) -> Iterator[str]:
    """All texts that a sequence stands for."""
    axes = (
        [part] if isinstance(part, str) else [word for option in part.options for word in _words(option)]
        for part in sequence
    )
    return map("".join, itertools.product(*axes))


def _count(sequence: tuple[str | _Choice, ...]) -> int:
    """How many they are, as far as that matters."""
    count = 1
    for part in sequence:
        if isinstance(part, _Choice):
            count = min(10**12, count * sum(map(_count, part.options)))
    return count
