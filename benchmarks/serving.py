"""What the server costs: the Triton ensemble, JPEG in and label out for 8 clients, against the same model in-process.

    python benchmarks/serving.py [BUNDLE...]

BUNDLE: folders of bundles, by default ./models and a full-size ViT-base with random weights, made on the spot; 40
seconds each. The graph is the one that is served: model.int8.onnx where the bundle has it. In-process is the library
with as many threads as the server's model has, asked one image at a time and eight at a time; the faster of the two is
the peer. The clients share the machine with the server. Images: 16 drawn JPEGs of 1200x1000. Writes its table into
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import numpy as np
from _results import machine, write_section
from latency import vit_base
from PIL import Image

from pneumonia import contract
from pneumonia.bundle import Manifest, open_bundle, write_bundle
from pneumonia.cli.demo import free_ports
from pneumonia.inference.predictor import Predictor, open_predictor
from pneumonia.triton.repository import write_repository
from pneumonia.triton.server import TritonServer

CLIENTS = 8
ROUNDS, ROUND_S = 3, 3.0
REQUIRED = 0.85


def main() -> None:
    """Measure each bundle and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        given = [Path(name) for name in sys.argv[1:]]
        if not given and not Path("models").is_dir():
            sys.exit("error: no bundle at models; run `make demo`, or name one")
        rows = [measure(path) for path in given or (Path("models"), vit_base_bundle(Path(folder)))]
    columns = ("model", f"Triton, {CLIENTS} clients, images/s", "in-process, images/s", "ratio",
               f"required: {REQUIRED}", "one client, ms", "in-process, ms", "overhead a request, ms")  # fmt: skip
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    text = "\n".join([head, *rows])
    print(text)
    note = (
        f"Medians of {ROUNDS} rounds of {ROUND_S:g} s in turns; JPEG of 1200x1000 in, label out; the clients run on "
        f"the same machine.\n{machine('onnxruntime', 'nvidia-pytriton', 'aiohttp', 'numpy', 'pillow')}"
    )
    bound = "What bounds it: the model's arithmetic for ViT-base; for the small model decoding, and what Triton adds."
    write_section("Serving", f"{note}\n\n{text}\n\n{bound}")


def vit_base_bundle(folder: Path) -> Path:
    """A bundle of a full-size ViT-base with random weights: speed does not depend on them."""
    vit_base(folder)
    files = {name: folder / name for name in (contract.ONNX_FILE, contract.INT8_FILE)}
    manifest = Manifest("vit-base", temperature=1.0, threshold=0.5, recall_target=0.95, data={"synthetic": True})
    return write_bundle(folder / "bundle", manifest, files).path


def jpegs() -> list[bytes]:
    """16 smooth images with some noise, as a detector's are."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 15), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((1200, 1000), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + rng.normal(0, 4, (1000, 1200)), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=90)
        images.append(stream.getvalue())
    return images


def measure(path: Path) -> str:
    """One row of the table."""
    bundle, images = open_bundle(path), jpegs()
    predictor = open_predictor("onnx", path)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(bundle, Path(folder))
        with TritonServer(Path(folder), *free_ports(3)) as server:
            server.wait_ready()
            ways: dict[str, Callable[[float], tuple[int, float]]] = {
                "served": lambda s: asyncio.run(ask(server.http_url, images, CLIENTS, s)),
                "served alone": lambda s: asyncio.run(ask(server.http_url, images, 1, s)),
                "in-process 1": lambda s: answer(predictor, images, 1, s),
                f"in-process {CLIENTS}": lambda s: answer(predictor, images, CLIENTS, s),
            }
            for way in ways.values():
                way(0.5)
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    count, seconds = way(ROUND_S)
                    rates[name].append(count / seconds)
                    time.sleep(0.2)  # Threads that wait by spinning come to rest.
    rate = {name: statistics.median(values) for name, values in rates.items()}
    peer = max(rate["in-process 1"], rate[f"in-process {CLIENTS}"])
    ratio = rate["served"] / peer
    alone, here = 1000 / rate["served alone"], 1000 / rate["in-process 1"]
    graph = contract.INT8_FILE if bundle.has(contract.INT8_FILE) else contract.ONNX_FILE
    verdict = "met" if ratio >= REQUIRED else "not met"
    return (
        f"| {bundle.manifest.name}, {graph} | {rate['served']:.1f} | {peer:.1f} | {ratio:.2f} | {verdict} "
        f"| {alone:.1f} | {here:.1f} | {alone - here:.1f} |"
    )


async def ask(url: str, images: list[bytes], clients: int, seconds: float) -> tuple[int, float]:
    """Requests answered and the seconds they took, by clients that wait for each answer."""
    target = f"{url}/v2/models/{contract.ENSEMBLE}/infer"
    began = time.perf_counter()
    count = 0
    async with aiohttp.ClientSession() as session:

        async def one(number: int) -> None:
            nonlocal count
            while time.perf_counter() - began < seconds:
                number += 1
                headers = {"Inference-Header-Content-Length": "0"}
                async with session.post(target, data=images[number % len(images)], headers=headers) as response:
                    body = await response.read()
                    if response.status != 200:
                        sys.exit(f"error: the server answered {response.status}: {body[:200]!r}")
                count += 1

        await asyncio.gather(*(one(number) for number in range(clients)))
    return count, time.perf_counter() - began


def answer(predictor: Predictor, images: list[bytes], batch: int, seconds: float) -> tuple[int, float]:
    """The same in this process, `batch` images at a time."""
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < seconds:
        start = count % len(images)
        count += len(predictor.predict(images[start : start + batch]))
    return count, time.perf_counter() - began


if __name__ == "__main__":
    main()
