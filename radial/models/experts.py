"""Names that say which of a model's two transformers a file is for: Wan 2.2 switches from one for high noise to one for
low."""

from __future__ import annotations

import re
from typing import Literal

Expert = Literal["high", "low"]

# The word alone, as in _high_ and -HIGH; not that of highres, low-vram, low_rank.
_NAMED = re.compile(
    r"(?<![a-z])(high|low)(?![-_. ]?(?:res|vram|rank|quality|poly|light(?!ning|x2v)|key|angle|fps|step|speed|detail|"
    r"motion|contrast|alpha|lr|mem))(?![a-z])",
    re.IGNORECASE,
)
_JOINED = re.compile(r"(high|low)[-_. ]?noise", re.IGNORECASE)
_SHORT = re.compile(r"(?<![a-zA-Z0-9])(HN|LN)(?![a-zA-Z0-9])|[-_](H|L)(?=[-_](?:e\d|v\d)|$)")


def expert_in(text: str) -> Expert | None:
    """The noise that a name speaks of, where it speaks of one alone."""
    for pattern in (_JOINED, _NAMED):
        found = {match[1].lower() for match in pattern.finditer(text)}
        if len(found) == 1:
            return "high" if found == {"high"} else "low"
        if found:
            return None
    short = {(match[1] or match[2])[0] for match in _SHORT.finditer(text)}
    return None if len(short) != 1 else "high" if short == {"H"} else "low"


def name_of_other(name: str) -> str:
    """What the file of the other transformer of a pair would be called, by the word that says the noise."""
    turned = {"high": "low", "low": "high", "h": "l", "l": "h"}

    def turn(match: re.Match[str]) -> str:
        group = next(i for i in range(1, len(match.groups()) + 1) if match[i] is not None)
        word, (first, end) = match[group], match.span(group)
        other = turned.get(word.lower()) or turned[word[0].lower()] + word[1:]
        other = other.upper() if word.isupper() else other.title() if word[0].isupper() else other
        return match[0][: first - match.start()] + other + match[0][end - match.start() :]

    for pattern in (_JOINED, _NAMED, _SHORT):
        if pattern.search(name):
            return pattern.sub(turn, name)
    return name
