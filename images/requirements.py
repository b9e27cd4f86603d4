"""Prints what pyproject.toml asks for: images install it before the sources, so that a change there keeps that layer.

python3 images/requirements.py EXTRA[,EXTRA...] [EXCLUDED...]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import tomllib


def main() -> None:
    """One requirement a line: the base ones, and those of the extras, without the packages excluded."""
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    extras = sys.argv[1].split(",")
    wanted = [*project["dependencies"], *(item for extra in extras for item in project["optional-dependencies"][extra])]
    for requirement in wanted:
        if re.match(r"[\w-]+", requirement)[0] not in sys.argv[2:]:
            print(requirement)


if __name__ == "__main__":
    main()
