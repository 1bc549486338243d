"""Constraints for the lowest versions that pyproject.toml allows, the last of each series: numpy>=2 is numpy==2.0.*."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
for requirement in wanted:
    match = re.match(r"([\w-]+)(?:\[\w+\])?>=(\d+)(?:\.(\d+))?", requirement)
    if match and match[1] not in ("torch", "radial-video"):  # torch comes as it is at hand
        print(f"{match[1]}=={match[2]}.{match[3] or 0}.*")
