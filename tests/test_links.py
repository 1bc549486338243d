"""The pages lead where they say: to each other, to their headings, and to the files that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
# Where a path between backticks may begin; reports keep the paths of their day.
BEGINNINGS = ("", "app", "finetune", "kernels", "assets")
NAMED = re.compile(r"`((?:radial|tests|docs|benchmarks|kernels|app|finetune|deploy)/[\w./-]+)`")


def _prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def _headings(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub makes them."""
    words = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ +(.*)$", _prose(page), re.M))
    return {re.sub(r"[^\w\- ]", "", word.strip().lower()).replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or target.suffix != ".md" or heading in _headings(target), link


@pytest.mark.parametrize("page", [one for one in PAGES if one.parent.name != "benchmarks"], ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    for path in NAMED.findall(_prose(page)):
        assert any((ROOT / beginning / path).exists() for beginning in BEGINNINGS), path
