"""Writes one named section of RESULTS.md; a benchmark script owns its section."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = "# Results\n\nWritten by the scripts of this folder (`make bench`); every number here came from one of them.\n"


def machine(*packages: str) -> str:
    """One line: processor, cores, Python and the versions of `packages`."""
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}."


def write_section(title: str, text: str) -> None:
    """Replace or append the section `title`."""
    page = RESULTS.read_text("utf-8") if RESULTS.exists() else _HEAD
    section = f"\n## {title}\n\n{text}\n"
    pattern = re.compile(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", re.DOTALL)
    page = pattern.sub(lambda _: section, page) if pattern.search(page) else page.rstrip("\n") + "\n" + section
    RESULTS.write_text(page, "utf-8")
