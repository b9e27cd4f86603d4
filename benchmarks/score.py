"""How close `pneumoctl score` comes to the model alone, and whether its memory stays flat.

    python benchmarks/score.py [BUNDLE] [--xrays FOLDER] [--images 5000] [--memory 1000,20000]

The model alone answers images that were decoded before, in batches of the same size; `score` does everything from files
to table. Both in processes of their own, in turns, medians of 3. Images are the X-rays of ../shared/data/chest-xray-224
where they are there, else JPEG files of noise of 224x224 from a seed. A full-size ViT-base with random weights does the
same with 200 of them. Memory is the peak of a whole process. BUNDLE
defaults to ./models (`make demo` makes it). Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _results import machine, write_section
from PIL import Image
from serving import vit_base_bundle

from pneumonia.core.cores import usable_cores

ROUNDS = 3
VIT_IMAGES = 200
RATIO = 0.85
GROWTH = 1.10
"""What memory may be at the larger count, as a multiple of the smaller one's, to be called flat."""
XRAYS = Path(__file__).resolve().parents[2] / "shared" / "data" / "chest-xray-224"

# Each prints one JSON line: seconds, without the start of Python and the loading of the model, the peak in MiB, and the
# seconds that reading and decoding took on one core (0 where they are part of the first).
_PEAK = 'next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024'
ALONE = f"""
import json, sys, time
from pathlib import Path
import numpy as np
from pneumonia.core.preprocess import normalize, pixels
from pneumonia.inference.predictor import open_predictor
from pneumonia.inference.score import BATCH
bundle, listed = sys.argv[1:]
predictor = open_predictor("onnx", Path(bundle))
spec = predictor.bundle.manifest.preprocessing
began = time.perf_counter()
gray = np.stack([pixels(Path(path).read_bytes(), spec) for path in Path(listed).read_text().splitlines()])
decoding = time.perf_counter() - began
predictor.answer(normalize(gray[:BATCH], spec))
seconds = 0.0
for start in range(0, len(gray), BATCH):
    batch = normalize(gray[start : start + BATCH], spec)
    began = time.perf_counter()
    predictor.answer(batch)
    seconds += time.perf_counter() - began
print(json.dumps([seconds, {_PEAK}, decoding]))
"""
SCORE = f"""
import json, sys, time
from pathlib import Path
from pneumonia.inference.inputs import Inputs
from pneumonia.inference.predictor import open_predictor
from pneumonia.inference.score import in_process, score
bundle, listed, output = sys.argv[1:]
answerer = in_process(open_predictor("onnx", Path(bundle)))
began = time.perf_counter()
score(Inputs(["@" + listed]), Path(output), answerer, {{}}, overwrite=True)
print(json.dumps([time.perf_counter() - began, {_PEAK}, 0]))
"""


def main() -> None:
    """Time both, measure memory, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", nargs="?", default="models")
    parser.add_argument("--xrays", type=Path, default=XRAYS)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--memory", default="1000,20000")
    given = parser.parse_args()
    bundle = str(Path(given.bundle).resolve())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        kind, images = _images(given.xrays, given.images, work)
        rows, local = _both("the bundle's model", bundle, given.images, kind, images, work)
        peaks = {}
        for count in map(int, given.memory.split(",")):
            peaks[count] = _run(SCORE, bundle, _list(work, images, count), str(work / "out.parquet"))[1]
            flat = peaks[count] <= GROWTH * min(peaks.values())
            verdict = f"at most {GROWTH:.2f} times the least: {'met' if flat else 'not met'}" if len(peaks) > 1 else ""
            rows.append((f"`score`, peak memory of {count:,} images", f"{peaks[count]:.0f} MiB", verdict))
        vit = str(vit_base_bundle(work))
        more, large = _both("ViT-base int8, random weights", vit, VIT_IMAGES, kind, images, work)
    rows += more
    bound = (f"What bounds it: decoding and the model share {usable_cores()} cores. If neither waited for the other, "
             f"there would be {local[0]:.0f} images/s for the bundle's model, of which `score` has {local[1]:.0%}, and "
             f"{large[0]:.1f} for ViT-base, of which it has {large[1]:.0%}.")  # fmt: skip
    table = "\n".join(["| what | median | ratio |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])
    write_section("Bulk scoring", f"{machine('onnxruntime', 'pillow', 'pyarrow')}\n\n{table}\n\n{bound}")
    print(table)


def _both(
    name: str, bundle: str, count: int, kind: str, images: list[Path], work: Path
) -> tuple[list[tuple[str, str, str]], tuple[float, float]]:
    """The rows of one model, alone and whole; and what decoding leaves possible, images/s, with the share reached."""
    listed = _list(work, images, count)
    alone, decoding, scored = [], [], []
    for _ in range(ROUNDS):
        seconds, _, decoded = _run(ALONE, bundle, listed)
        alone.append(seconds)
        decoding.append(decoded / usable_cores())
        scored.append(_run(SCORE, bundle, listed, str(work / "out.parquet"))[0])
    best, whole = count / statistics.median(alone), count / statistics.median(scored)
    bound = count / (statistics.median(alone) + statistics.median(decoding))
    verdict = f"{whole / best:.2f} (to reach {RATIO}: {'met' if whole >= RATIO * best else 'not met'})"
    return [
        (f"{name} alone, images decoded before", f"{best:.1f} images/s", "1.00"),
        (f"`score`, {count:,} {kind} to parquet", f"{whole:.1f} images/s", verdict),
    ], (bound, whole / bound)


def _images(xrays: Path, count: int, work: Path) -> tuple[str, list[Path]]:
    """What they are, and their files."""
    found = sorted(xrays.rglob("*.jpeg"))[:count]
    if found:
        return "X-rays of 224x224", found
    rng = np.random.default_rng(0)
    for number in range(min(count, 500)):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).resize((224, 224)).save(stream, "JPEG", quality=90)
        (work / f"{number}.jpeg").write_bytes(stream.getvalue())
    return "generated JPEG files of 224x224", sorted(work.glob("*.jpeg"))


def _list(work: Path, images: list[Path], count: int) -> str:
    """A list file of `count` images, from the front again where there are fewer."""
    path = work / f"{count}.txt"
    path.write_text("".join(f"{images[number % len(images)]}\n" for number in range(count)))
    return str(path)


def _run(code: str, *arguments: str) -> tuple[float, float, float]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak, decoding = json.loads(done.stdout)
    return seconds, peak, decoding


if __name__ == "__main__":
    main()
