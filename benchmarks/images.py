"""How large the images are, and how long a server in one takes until it answers.

    python benchmarks/images.py [BUNDLE]

Of the images that `make images` built. A container's start is the median of 5, from `docker run` to the first answer to
the readiness probe of the ensemble, with the release of BUNDLE (default ./models, which `make demo` makes) mounted.
Writes its table into benchmarks/RESULTS.md; leaves it as it is where Docker, the images or the bundle are absent.
"""

from __future__ import annotations

import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _results import machine, write_section

from pneumonia import __version__, contract
from pneumonia.release.publish import publish

ROUNDS = 5
BASE_LABEL = "org.opencontainers.image.base.name"
IMAGES = (f"pneumonia-step:{__version__}", f"pneumonia-triton:{__version__}")


def docker(*arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def megabytes(image: str) -> float:
    """Size of an image, its base included."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6


def is_ready(port: int) -> bool:
    """Whether the ensemble answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", f"/v2/models/{contract.ENSEMBLE}/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start_seconds(release: Path) -> float:
    """From `docker run` to the first answer."""
    began = time.perf_counter()
    name = docker("run", "--detach", "--read-only", "--tmpfs", "/tmp", "--publish", "127.0.0.1::8000",
                  "--env", f"{contract.ALLOW_SYNTHETIC_ENV}=1", "--volume", f"{release}:{contract.MOUNTED_RELEASE}:ro",
                  IMAGES[1], contract.MOUNTED_RELEASE)  # fmt: skip
    try:
        port = int(docker("port", name, "8000").rpartition(":")[2])
        while not is_ready(port):
            if time.perf_counter() - began > 120:
                raise SystemExit(f"not ready after 120 s:\n{docker('logs', name)}")
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        docker("rm", "--force", name)


def main() -> None:
    """Measure and print."""
    bundle = Path(sys.argv[1] if len(sys.argv) > 1 else contract.BUNDLE_DIR)
    try:
        rows = []
        for image in IMAGES:
            base = docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{BASE_LABEL}"}}}}', image)
            rows.append(f"| {image} | {megabytes(image):.0f} | {megabytes(image) - megabytes(base):.0f} |")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"images: skipped, no Docker or no images ({error}); make images", file=sys.stderr)
        return
    if not (bundle / contract.BUNDLE_MANIFEST).is_file():
        print(f"images: skipped, no bundle at {bundle}; make demo", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        release = publish(bundle, Path(folder))
        seconds = [start_seconds(release) for _ in range(ROUNDS)]
    table = "\n".join(["| image | MB | of it above the base image, MB |", "|---|---|---|", *rows])
    start = f"A server answers {statistics.median(seconds):.1f} s after `docker run` (median of {ROUNDS})."
    engine = docker("version", "--format", "{{.Server.Version}}")
    text = f"{machine('onnxruntime')} Docker {engine}, the base a Debian 12 with Python 3.11.\n\n{table}\n\n{start}"
    write_section("Images", text)
    print(table, start, sep="\n")


if __name__ == "__main__":
    main()
