#!/usr/bin/env python3
"""Packages the Helm chart, with the address of this repository as its `home` and source.

The address is --home, or that of git's remote `origin`; where neither is on the web, the chart is packaged without and
that is said. Prints the package's path.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "pneumonia"


def web_address(remote: str) -> str | None:
    """Where a browser finds the repository of a git remote, without credentials; None where it is not on the web."""
    # git@host:path is how git writes ssh://git@host/path.
    parts = urlsplit(re.sub(r"^([^@/:]+@[^/:]+):", r"ssh://\1/", remote.strip()))
    if parts.scheme not in ("https", "ssh") or not parts.hostname:
        return None
    # The port of ssh is none of a browser's.
    host = parts.netloc.rpartition("@")[2] if parts.scheme == "https" else parts.hostname
    return f"https://{host}{parts.path.rstrip('/').removesuffix('.git')}"


def origin() -> str | None:
    """The address of git's remote `origin`."""
    done = subprocess.run(["git", "-C", ROOT, "remote", "get-url", "origin"], capture_output=True, text=True)
    return web_address(done.stdout) if done.returncode == 0 else None


def package(out: Path, home: str | None) -> Path:
    """The chart as one file in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pneumonia-chart.") as folder:
        chart = Path(shutil.copytree(CHART, Path(folder) / CHART.name))
        if home:
            about = chart / "Chart.yaml"
            stamped = yaml.safe_dump({"home": home, "sources": [home]}, sort_keys=False)
            about.write_text(about.read_text("utf-8").rstrip() + "\n" + stamped, "utf-8")
        return Path(helm_python.package(chart, destination=out))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", help="address of the project's page; default: that of git's remote `origin`")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder that gets the package")
    given = parser.parse_args()
    home = given.home or origin()
    if not home:
        print("chart: no address on the web is known, so it names no home; give HOME_URL=https://...", file=sys.stderr)
    print(package(given.out, home))


if __name__ == "__main__":
    main()
