"""The commands that the documents print, for a test to run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def block(document: str, beginning: str) -> list[str]:
    """Lines of the shell block of a document that has a line with this beginning, continued lines joined."""
    text = (ROOT / document).read_text("utf-8")
    for found in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        lines = [line for line in re.sub(r" *\\\n *", " ", found).splitlines() if line.strip()]
        if any(line.startswith(beginning) for line in lines):
            return lines
    raise AssertionError(f"{document} has no shell block with a line that begins with {beginning!r}")


def here(line: str, namespace: str, **given: str) -> str:
    """A documented command for another namespace and with the reader's own values. Fails for one that is not in it."""
    line = re.sub(r"(-n|--namespace) pneumonia\b", rf"\1 {namespace}", line)
    for old, new in given.items():
        assert old in line, f"{line!r} has no {old!r}"
        line = line.replace(old, new)
    return line
