"""A story as its author writes it: a line a prompt, with names, times and cuts; or the same in YAML.

    # a comment
    4s anna (a small red star): rises on a black background
    anna: spins slowly
    # cut
    # remember: pin
    2.5s ben: a large blue ring falls on white

``anna: ...`` gives a figure a name at its first mention, and brings it back at later ones. ``anna (...)`` gives it a
look, which is told in the place of its name from there on; without one, words reach the model as they stand. Seconds
before a line are its time. ``# cut`` begins the next line at a hard cut, and ``# remember: pin``, ``drop`` or a
segment's number says how it is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from radial.errors import RequestError
from radial.files import decode_text
from radial.request import MAX_SEED

MAX_LINES = 4096
Remember = Literal["pin", "drop"] | int
_OF_AN_ENTRY = ("prompt", "name", "look", "seconds", "cut", "seed", "remember")
_LONGEST = 600.0  # seconds of a line
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*s\s+(?=\S)")
_NAME = re.compile(r"([^\W\d_][\w-]{0,31})\s*(?:\(([^()]*)\)\s*)?:\s*", re.UNICODE)
_RETURN = re.compile(r"@([^\W\d_][\w-]{0,31})\b", re.UNICODE)
_CUT = re.compile(r"#\s*cut\s*", re.IGNORECASE)
_REMEMBER = re.compile(r"#\s*remember\s*:\s*(.*)", re.IGNORECASE)
_LARGEST = 1 << 20  # bytes of a file
_TORN = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError)  # what YAML's tags raise at what they get
_MOST_LETTERS = 20_000  # of a prompt, as of a clip's
_SHOWN = 200  # letters of a value that is wrong


@dataclass(frozen=True)
class Line:
    """A segment of a story.

    Attributes:
        prompt: its words, the name in front included.
        seconds: how long it lasts; the story's own time a line where None.
        name: of its figure.
        returns: whether that figure was there before.
        cut: whether it begins at a hard cut: nothing of the segment before is in its window.
        seed: that it is drawn from in place of the story's, as where it was made anew.
        remember: how later segments remember it, where they do not as others: ``pin``, always whole and near; ``drop``,
            never; or the number, from 1, of a segment whose memory they read in place of its own.
        look: of its figure, where one was given here or before.
    """

    prompt: str
    seconds: float | None = None
    name: str | None = None
    returns: bool = False
    cut: bool = False
    seed: int | None = None
    remember: Remember | None = None
    look: str | None = None

    def told(self) -> dict[str, Any]:
        """All of it, in values for JSON; as in earlier versions where those could say it."""
        newer = ("remember", "look")
        return {name: value for name, value in asdict(self).items() if name not in newer or value is not None}

    def words(self, *, named: bool) -> str:
        """What a model is told: the look of its figure, where it has one, and its name where that is to be told."""
        found = None if self.name is None else _NAME.match(self.prompt)
        if found is None:
            return self.prompt
        rest = self.prompt[found.end() :]
        rest = rest if self.look is None else f"{self.look} {rest}"
        return f"{found[1]}: {rest}" if named else rest


def looks_in(lines: Sequence[Line]) -> dict[str, str | None]:
    """The names that lines give, and their looks, where they have any."""
    return {line.name: line.look for line in lines if line.name is not None}


def read_story(text: str, known: Mapping[str, str | None] | None = None) -> tuple[Line, ...]:
    """The segments of a story that is written line by line.

    Args:
        known: names that were given before, and looks, where a film goes on; None where it begins.

    Raises:
        RequestError: a line is empty, a name is used before it is given, a time is out of bounds; says which line.
    """
    lines: list[Line] = []
    looks, cut, remember = dict(known or {}), False, None
    rows = text.splitlines()
    while rows and not rows[-1].strip():
        rows.pop()
    for number, row in enumerate(rows, 1):
        if _CUT.fullmatch(row.strip()):
            cut = True
            continue
        if (told := _REMEMBER.fullmatch(row.strip())) is not None:
            if remember is not None:
                raise RequestError(
                    f"line {number} says once more how the next one is remembered: leave one of them out"
                )
            word = told[1].casefold()
            remember = check_remember(int(word) if word.isdecimal() and len(word) < 10 else word, f"line {number}")
            continue
        if row.lstrip().startswith("#"):
            continue
        if not row.strip():
            raise RequestError(f"line {number} is empty; write a prompt, or a # to leave it out")
        seconds, rest = None, row.strip()
        if (time := _SECONDS.match(rest)) is not None:
            seconds, rest = float(time[1]), rest[time.end() :]
        line = _line(rest, seconds, looks, cut and bool(lines or known is not None), f"line {number}")
        lines.append(replace(line, remember=remember))
        cut, remember = False, None
    if remember is not None:
        raise RequestError(
            "the last line says how the next one is remembered, and none follows: write one, or remove it"
        )
    return _checked(lines)


def read_story_file(path: Path, known: Mapping[str, str | None] | None = None) -> tuple[Line, ...]:
    """The segments of a story in a file; YAML where it is so named: a list of prompts, or of ``prompt``, ``name``,
    ``look``, ``seconds``, ``cut``, ``seed`` and ``remember``.

    Raises:
        RequestError: it cannot be read, or breaks a rule of a story.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise RequestError(f"{path} is larger than {_LARGEST >> 20} MB: that is no story")
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{path} {error}") from error
    return read_story_yaml(text, known) if path.suffix.lower() in (".yaml", ".yml") else read_story(text, known)


def read_story_yaml(text: str, known: Mapping[str, str | None] | None = None) -> tuple[Line, ...]:
    """The segments of a story in YAML.

    Raises:
        RequestError: it is no YAML, or breaks a rule of a story.
    """
    import yaml

    from radial.yaml_file import load_yaml

    try:
        found, _ = load_yaml(text)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        # The last ones are what its constructors raise at tagged values that are none.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        told = "it is nested too deep" if isinstance(error, RecursionError) else str(problem or error)
        where = f"line {mark.line + 1}: " if mark else ""
        raise RequestError(f"the story is not YAML: {where}{' '.join(told.split())[:_SHOWN]}") from error
    if not isinstance(found, list):
        raise RequestError("a story in YAML is a list of prompts")
    return read_entries(found, known)


def read_entries(
    found: Sequence[Any], known: Mapping[str, str | None] | None = None, what: str = "entry"
) -> tuple[Line, ...]:
    """The segments of a story that is a list of prompts, or of ``prompt``, ``name``, ``look``, ``seconds``, ``cut``,
    ``seed`` and ``remember``.

    Args:
        known: names that were given before, and looks, where a film goes on; None where it begins.
        what: an entry is called in errors.

    Raises:
        RequestError: an entry breaks a rule of a story; says which.
    """
    if len(found) > MAX_LINES:
        raise RequestError(f"a story has at most {MAX_LINES} lines, not {len(found)}")
    lines: list[Line] = []
    looks = dict(known or {})
    for number, entry in enumerate(found, 1):
        where = f"{what} {number}"
        values: dict[str, Any] = {"prompt": entry} if isinstance(entry, str) else entry
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str) or not values["prompt"].strip():
            raise RequestError(f"{where} is empty; write a prompt")
        if unknown := [name for name in values if name not in _OF_AN_ENTRY]:
            raise RequestError(f"{where} has {_shown(unknown[0])}; known are {', '.join(_OF_AN_ENTRY)}")
        seconds, name, seed = values.get("seconds"), values.get("name"), check_seed(values.get("seed"), where)
        if seconds is not None and not is_number(seconds):
            raise RequestError(f"{where}: seconds must be a number, not {_shown(seconds)}")
        if name is not None and (not isinstance(name, str) or not _NAME.fullmatch(f"{name}:")):
            raise RequestError(f"{where}: a name is one word of letters, not {_shown(name)}")
        words = values["prompt"].strip() if name is None else f"{name}: {values['prompt'].strip()}"
        if (look := values.get("look")) is not None and not isinstance(look, str):
            raise RequestError(f"{where}: a look is words, not {_shown(look)}")
        if not isinstance(cut := values.get("cut", False), bool):
            raise RequestError(f"{where}: cut must be true or false, not {_shown(cut)}")
        line = _line(words, seconds, looks, cut and bool(lines or known is not None), where, look)
        lines.append(replace(line, seed=seed, remember=check_remember(values.get("remember"), where)))
    return _checked(lines)


def lines_told(told: Any) -> tuple[Line, ...]:
    """The segments that a film's receipt tells of, by the rules of those that are written.

    Raises:
        RequestError: they break one.
    """
    lines = []
    for number, one in enumerate(told if isinstance(told, list) else (), 1):
        where, values = f"line {number}", one if isinstance(one, dict) else {}
        prompt, seconds, name = (values.get(field) for field in ("prompt", "seconds", "name"))
        returns, cut, look = values.get("returns"), values.get("cut"), values.get("look")
        if not isinstance(prompt, str) or not prompt.strip():
            raise RequestError(f"{where} is empty")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise RequestError(f"{where} has a name that is none")
        if look is not None and (not isinstance(look, str) or not look.strip() or name is None):
            raise RequestError(f"{where} has a look that is none")
        if not isinstance(returns, bool) or not isinstance(cut, bool):
            raise RequestError(f"{where} does not say whether it returns and is cut")
        seed = check_seed(values.get("seed"), where)
        remember = check_remember(values.get("remember"), where)
        lines.append(Line(prompt, check_seconds(seconds, where), name, returns, cut, seed, remember, look))
    return _checked(lines)


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_seed(seed: Any, where: str) -> int | None:
    """The seed of a segment that has one of its own.

    Raises:
        RequestError: it is no whole number, or out of bounds.
    """
    if seed is not None and not (isinstance(seed, int) and is_number(seed) and 0 <= seed <= MAX_SEED):
        raise RequestError(f"{where}: a seed is a whole number from 0 to {MAX_SEED}, not {_shown(seed)}")
    return seed


def check_remember(remember: Any, where: str) -> Remember | None:
    """How a segment is remembered, if it says so.

    Raises:
        RequestError: it is nothing that a segment can say.
    """
    if remember is None or remember in ("pin", "drop"):
        return remember
    if not (isinstance(remember, int) and is_number(remember) and 1 <= remember <= MAX_LINES):
        raise RequestError(
            f"{where}: remember is pin, drop, or the number of the segment whose memory is read in its place, from 1 "
            f"on, not {_shown(remember)}"
        )
    return remember


def check_seconds(seconds: Any, where: str) -> float | None:
    """How long a segment lasts, if it says so.

    Raises:
        RequestError: it is no number, or out of bounds.
    """
    if seconds is None:
        return None
    if not is_number(seconds) or not 0 < seconds <= _LONGEST:
        shown = f"{seconds:g}" if isinstance(seconds, float) else _shown(seconds)
        raise RequestError(f"{where}: a segment lasts more than 0 and at most {_LONGEST:g} seconds, not {shown}")
    return float(seconds)


def _shown(value: Any) -> str:
    """A value as an error shows it, cut short."""
    try:
        return repr(value)[:_SHOWN]
    except ValueError:  # Python writes no number of thousands of digits
        return "a number that is far too large"
    except RecursionError:
        return "what is nested too deep"


def name_in(words: str) -> str | None:
    """The name that a line's words begin with, as names are told apart; None where they name nobody."""
    found = _NAME.match(words)
    return None if found is None else found[1].casefold()


def _line(
    words: str, seconds: float | None, looks: dict[str, str | None], cut: bool, where: str, look: str | None = None
) -> Line:
    """A segment; ``looks`` are those of names that were given before, and get those that it gives."""
    seconds = check_seconds(seconds, where)
    found = _NAME.match(words)
    if found is None and look is not None:
        raise RequestError(f"{where} has a look and no name: whom it describes is said by a name")
    for mention in _RETURN.finditer(words):
        if mention[1].casefold() not in looks:
            raise RequestError(
                f'{where} uses the name {mention[1]} before it is given; write "{mention[1]}: " and what it looks '
                "like on a line before"
            )

    def told(words: str) -> str:
        return " ".join(_RETURN.sub(lambda mention: looks[mention[1].casefold()] or mention[1], words).split())

    if found is None:
        return Line(told(words), seconds, cut=cut)
    name, look, rest = found[1].casefold(), found[2] if look is None else look, told(words[found.end() :])
    if not rest:
        raise RequestError(f"{where} names {found[1]} and says nothing of it; say what it does")
    if look is not None and not look.strip():
        raise RequestError(f"{where} has an empty look of {found[1]}: say what it looks like, or leave it out")
    returns, look = name in looks, looks.get(name) if look is None else told(look)
    looks[name] = look
    return Line(f"{found[1]}: {rest}", seconds, name, returns, cut, look=look)


def _checked(lines: list[Line]) -> tuple[Line, ...]:
    if not lines:
        raise RequestError('the story is empty; write a prompt a line, such as "anna: a red star rises on black"')
    if len(lines) > MAX_LINES:
        raise RequestError(f"a story has at most {MAX_LINES} lines, not {len(lines)}")
    for line in lines:
        words = line.words(named=True)
        if any("\ud800" <= letter <= "\udfff" for letter in words):
            raise RequestError("a line has halves of letters, as of text that was cut in its middle: write it anew")
        if len(words) > _MOST_LETTERS:
            raise RequestError(f"a line has at most {_MOST_LETTERS} letters; the one of {words[:40]!r} has more")
    return tuple(lines)
