"""The ``radial`` command: what needs no more than a moment is answered before anything is loaded."""

from __future__ import annotations

import sys
from typing import NoReturn

from radial.version import __version__


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl+C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"radial {__version__}")
        sys.exit(0)
    from radial_app.cli.commands import run

    run(arguments)
