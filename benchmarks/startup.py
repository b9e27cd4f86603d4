"""How long a user waits for `pneumoctl`: --help, one image through ONNX Runtime or Triton, against `import torch`.

    python benchmarks/startup.py [BUNDLE]

Whole processes, started one after the other in turns, medians of 9. BUNDLE defaults to ./models (`make demo` makes it).
Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _results import machine, write_section
from PIL import Image

from pneumonia.bundle import open_bundle
from pneumonia.cli.demo import free_ports
from pneumonia.triton.repository import write_repository
from pneumonia.triton.server import TritonServer

ROUNDS = 9
TRITON = "pneumoctl infer --mode triton, the same image"


def main() -> None:
    """Time the commands and print one row each."""
    bundle = Path(sys.argv[1] if len(sys.argv) > 1 else "models").resolve()
    pneumoctl = Path(sys.executable).with_name("pneumoctl")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "xray.jpeg"
        pixels = np.random.default_rng(0).integers(0, 256, (1000, 1200), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=85)
        image.write_bytes(stream.getvalue())
        commands = {
            "pneumoctl --help": [pneumoctl, "--help"],
            "pneumoctl infer --mode onnx, one image of 1200x1000": [
                pneumoctl, "infer", image, "--mode", "onnx", "--bundle", bundle,
            ],
            TRITON: [pneumoctl, "infer", image, "--mode", "triton", "--url", ""],
            "python -c 'import torch' (peer)": [sys.executable, "-c", "import torch"],
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        repository = Path(folder) / "repository"
        write_repository(open_bundle(bundle), repository)
        with TritonServer(repository, *free_ports(3)) as server:
            server.wait_ready()
            commands[TRITON][-1] = server.http_url
            for _ in range(ROUNDS):
                for name, command in commands.items():
                    began = time.perf_counter()
                    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env=os.environ)
                    seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peer = medians["python -c 'import torch' (peer)"]
    rows = [f"| {name} | {median:.3f} s | {median / peer:.2f} |" for name, median in medians.items()]
    verdict = "met" if medians[TRITON] < peer else "not met"
    bound = (
        f"`infer --mode triton` faster than the peer: {verdict}. What bounds it: starting Python and importing the "
        f"command line, the first row, is {medians['pneumoctl --help'] / medians[TRITON]:.0%} of it."
    )
    table = "\n".join(["| command | median | against the peer |", "|---|---|---|", *rows, "", bound])
    write_section("Start-up", f"{machine('onnxruntime', 'torch', 'typer')}\n\n{table}")
    print(table)


if __name__ == "__main__":
    main()
