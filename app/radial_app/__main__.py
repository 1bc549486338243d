"""``python -m radial_app`` is ``radial``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the version is told before anything is loaded."""
    if sys.argv[1:] == ["--version"]:
        from radial.version import __version__

        print(f"radial {__version__}")
        return
    from radial_app.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
