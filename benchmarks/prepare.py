"""`pneumoctl data prepare`: seconds and peak anonymous memory, with the data as they are and doubled.

    python benchmarks/prepare.py [XRAYS]

XRAYS: default ../shared/data/chest-xray-224. The doubled folder holds every image twice under two patients, the copy
with one byte appended so that it is not an exact duplicate. Memory is the sum over the process and its workers of
RssAnon, read every 50 ms: pages of files, such as those of the pixel cache, are not counted, because the kernel takes
them back at will. Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _results import machine, write_section

LIMIT_S, LIMIT_MB = 30, 600


def main() -> None:
    """Prepare once and doubled, print a row each."""
    xrays = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/chest-xray-224")
    if not xrays.is_dir():
        sys.exit(f"error: no X-rays at {xrays}; give their folder")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        doubled = Path(scratch) / "doubled"
        count = double(xrays, doubled)
        for images, root in ((count, xrays), (2 * count, doubled)):
            rows.append((images, *measure(root, Path(scratch) / f"out-{images}")))
    (_, seconds, memory), (_, _, memory_doubled) = rows
    met = seconds < LIMIT_S and memory < LIMIT_MB and memory_doubled < 1.1 * memory
    text = "\n".join([
        machine("pillow", "numpy"), "",
        "| images | seconds | peak anonymous memory, MB |", "|---|---|---|",
        *(f"| {images} | {took:.1f} | {peak:.0f} |" for images, took, peak in rows),
        f"\nAsked for: under {LIMIT_S} s and {LIMIT_MB} MB, and memory within 10 % when the data double: "
        f"{'met' if met else 'not met'}.",
    ])  # fmt: skip
    print(text)
    write_section("Preparing data", text)


def double(source: Path, target: Path) -> int:
    """Copy every image twice, the second under another patient; returns how many there were."""
    count = 0
    for path in sorted(source.rglob("*.jpeg")):
        folder = target / path.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        (folder / path.name).write_bytes(data)
        name = path.name.replace("IM-", "IM-9").replace("person", "person9")
        (folder / name).write_bytes(data + b"\0")
        count += 1
    return count


def measure(root: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak anonymous memory in MB of one `pneumoctl data fetch` and `prepare`."""
    pneumoctl = str(Path(sys.executable).with_name("pneumoctl"))
    places = [
        f"data.raw_dir={out}/raw",
        f"data.prepared_dir={out}/prepared",
        "data=folder",
        f"data.root={root.resolve()}",
    ]
    subprocess.run([pneumoctl, "data", "fetch", *places], check=True, capture_output=True)
    began = time.perf_counter()
    process = subprocess.Popen([pneumoctl, "data", "prepare", *places], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, anonymous_mb(process.pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"error: pneumoctl data prepare ended with {process.returncode}")
    return time.perf_counter() - began, peak


def anonymous_mb(session: int) -> float:
    """RssAnon of all processes of a session, in MB."""
    total = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.getsid(int(entry)) == session:
                status = Path("/proc", entry, "status").read_text()
                total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
        except (OSError, ProcessLookupError):
            continue
    return total / 1024


if __name__ == "__main__":
    main()
