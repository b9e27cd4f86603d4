"""Decoding with the resize of large JPEG files, against Pillow; and what it changes in a model's answers.

    python benchmarks/decode.py [BUNDLE] [XRAYS]

Three fixed seeded radiograph-like images of 2000x2000 pixels, saved as 0.2, 0.9 and 1.4 MB. The peer is what a user of
Pillow writes: open, convert("RGB"), resize((224, 224), BILINEAR); convert("L") stands beside it. Both in turns on one
thread, medians of 25. Then 200 X-rays, enlarged to 1500 to 2500 pixels, are answered by BUNDLE (default ./models) from
scaled and from whole decoding. XRAYS: default ../shared/data/chest-xray-224. Writes its table into
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import dataclasses
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _results import machine, write_section
from PIL import Image, features

from pneumonia.core.preprocess import Preprocessing, pixels, preprocess

ROUNDS = 25
TARGETS = {200_000: 4.0, 900_000: 2.2, 1_400_000: 1.8}
"""Bytes of the file, and the ratio to reach."""
GAP = 3
IMAGES = 200
SPEC = Preprocessing()
WHOLE = dataclasses.replace(SPEC, scaled_decoding=None)


def main() -> None:
    """Print both tables."""
    bundle = Path(sys.argv[1] if len(sys.argv) > 1 else "models")
    xrays = Path(sys.argv[2] if len(sys.argv) > 2 else "../shared/data/chest-xray-224")
    if not xrays.is_dir():
        sys.exit(f"error: no X-rays at {xrays}; give their folder")
    lines = [
        f"{machine('pillow', 'numpy')} libjpeg-turbo {features.version_feature('libjpeg_turbo')}, one thread.", "",
        "| 2000x2000 JPEG | ours, ms | Pillow RGB, ms | Pillow L, ms | RGB / ours | L / ours | to reach "
        "| largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for size, target in TARGETS.items():
        lines.append(row(encoded(size), target))
    lines += ["", *changed_answers(bundle, xrays)]
    write_section("Decoding of large JPEG files", "\n".join(lines))
    print("\n".join(lines))


def encoded(size: int) -> bytes:
    """A radiograph-like image as JPEG of about `size` bytes: bright and dark fields, edges, grain. Seeded."""
    random = np.random.default_rng(20)
    coarse = Image.fromarray(random.integers(0, 256, (14, 14), dtype=np.uint8))
    scene = np.asarray(coarse.resize((2000, 2000), Image.Resampling.BICUBIC), np.float64)
    scene += 40 * (np.sin(np.arange(2000) / 30)[:, None] > 0.7) + random.normal(0, 8, (2000, 2000))
    image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    files = (saved(image, quality) for quality in range(5, 99))
    return min(files, key=lambda data: abs(len(data) - size))


def saved(image: Image.Image, quality: int) -> bytes:
    """The image as JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def pillow(data: bytes, mode: str) -> Any:
    """The peer."""
    image = Image.open(io.BytesIO(data)).convert(mode)
    return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))


def row(data: bytes, target: float) -> str:
    """One file's line."""
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: pixels(data, SPEC),
        "RGB": lambda: pillow(data, "RGB"),
        "L": lambda: pillow(data, "L"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:  # the first warms caches
                seconds[name].append(time.perf_counter() - began)
    ours, rgb, gray = (1e3 * statistics.median(seconds[name]) for name in calls)
    largest = int(np.abs(calls["ours"]().astype(int) - pixels(data, WHOLE).astype(int)).max())
    verdict = "met" if rgb / ours >= target and largest <= GAP else "MISSED"
    return (f"| {len(data) / 1e6:.1f} MB | {ours:.1f} | {rgb:.1f} | {gray:.1f} | {rgb / ours:.1f} | {gray / ours:.1f} "
            f"| {target:g}: {verdict} | {largest}/255 |")  # fmt: skip


def changed_answers(bundle: Path, xrays: Path) -> list[str]:
    """Probabilities and labels from scaled and whole decoding of enlarged X-rays."""
    from pneumonia import contract
    from pneumonia.bundle import open_bundle
    from pneumonia.inference.onnx_runtime import open_session

    opened = open_bundle(bundle)
    session = open_session(opened.file(contract.ONNX_FILE), "cpu")
    random = np.random.default_rng(21)
    paths = sorted(xrays.rglob("*.jpeg"))
    answers: dict[str, list[float]] = {"scaled": [], "whole": []}
    for number in random.choice(len(paths), IMAGES, replace=False):
        with Image.open(paths[number]) as image:
            large = image.convert("L").resize(tuple(random.integers(1500, 2501, 2)), Image.Resampling.BICUBIC)
        data = saved(large, 90)
        for name, spec in (("scaled", SPEC), ("whole", WHOLE)):
            (logits,) = session.run([contract.TENSOR_OUTPUT], {contract.TENSOR_INPUT: preprocess([data], spec)})
            answers[name].append(float(opened.manifest.point.probability(logits)[0]))
    scaled, whole = (np.array(values) for values in answers.values())
    threshold = opened.manifest.threshold
    changed = np.mean((scaled >= threshold) != (whole >= threshold))
    median = np.median(np.abs(scaled - whole))
    verdict = "met" if median <= 0.01 and changed <= 0.01 else "MISSED"
    return [
        f"{IMAGES} X-rays enlarged to 1500 to 2500 pixels a side, model {opened.model_id}, whole against scaled "
        f"decoding: median |Δp| {median:.1e}, largest {np.abs(scaled - whole).max():.4f}, {changed:.1%} of "
        f"labels changed (to reach: .01 and 1 %): {verdict}.",
        "",
        "What bounds it: in larger files Huffman decoding, which every scale needs; in smaller ones the inverse "
        "transform and the resize, of which a sixteenth is left.",
    ]


if __name__ == "__main__":
    main()
