"""Synthetic radiographs, drawn with NumPy: two lungs, ribs, a heart, and more or less of an opacity."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumonia import contract
from pneumonia.config.schema import DataConfig
from pneumonia.data.parallel import parallel_map
from pneumonia.data.sources import SOURCE_FILE, check_replaceable, read_source
from pneumonia.files import replace_directory, write_json, write_text

PNEUMONIA_SHARE = 2.7 / 3.7
"""The class ratio of the Kaggle set, 1:2.7."""
SEVERITY_GAP = 1.78
"""Severity is normal with deviation 1 around -gap and +gap, so the classes overlap as those of real X-rays do: whoever
knows the severity reaches an AUROC of Phi(gap * sqrt 2) = .994, and nobody can reach more."""
LATENTS_FILE = "latents.csv"
_VERSION = 2
"""Goes up when the drawing changes, so that older files are drawn again."""


@dataclass(frozen=True)
class Phantom:
    """What one image is drawn from. severity is the oracle's knowledge; everything else is nuisance."""

    name: str
    label: int
    severity: float
    seed: tuple[int, int]


def plan(count: int, seed: int) -> list[Phantom]:
    """The images to draw, deterministic for a count and a seed; about a third of the patients have several images."""
    rng = np.random.default_rng([seed, _VERSION])
    names: list[str] = []
    labels: list[int] = []
    patient = 0
    while len(names) < count:
        patient += 1
        label = int(rng.random() < PNEUMONIA_SHARE)
        kind = "bacteria" if rng.random() < 0.65 else "virus"
        for image in range(1, 1 + min(int(rng.choice([1, 2, 3], p=[0.68, 0.22, 0.10])), count - len(names))):
            stem = f"person{patient}_{kind}_{len(names) + 1}" if label else f"IM-{patient:04d}-{image:04d}"
            names.append(f"{stem}.jpeg")
            labels.append(label)
    severity = _severities(np.array(labels), rng)
    return [Phantom(names[i], labels[i], float(severity[i]), (seed, i)) for i in range(count)]


def _severities(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Severity by image, (N,). One draw from each of n equally likely slices of a class's normal distribution, instead
    of n free draws: a small set then has the overlap that is promised, whatever its seed."""
    severity = np.empty(len(labels))
    for label, centre in enumerate((-SEVERITY_GAP, SEVERITY_GAP)):
        rows = np.flatnonzero(labels == label)
        share = (rng.permutation(len(rows)) + rng.uniform(0.001, 0.999, len(rows))) / max(1, len(rows))
        severity[rows] = [NormalDist(centre).inv_cdf(each) for each in share]
    return severity


def draw(phantom: Phantom) -> npt.NDArray[np.uint8]:
    """One radiograph, uint8 (H, W), H and W between 230 and 330."""
    rng = np.random.default_rng([*phantom.seed, _VERSION])
    height, width = (int(side) for side in rng.integers(230, 331, 2))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(rng.normal(0, 0.04))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] - np.float32(rng.normal(0, 0.04))

    def disc(cx: float, cy: float, rx: float, ry: float, edge: float) -> npt.NDArray[np.float32]:
        """1 inside an ellipse, 0 outside, with a soft edge."""
        distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
        return np.asarray(1 / (1 + np.exp(np.clip((distance - 1) / edge, -30, 30))), np.float32)

    size = float(rng.uniform(0.9, 1.1))
    body = disc(0, 0.1, 0.92 * size, 1.25, 0.08)
    lungs = [
        disc(side * 0.42 * size, rng.normal(-0.05, 0.03), rng.normal(0.28, 0.015) * size, rng.normal(0.62, 0.03), 0.10)
        for side in (-1, 1)
    ]
    air = np.maximum(lungs[0], lungs[1])
    heart = disc(0.10 * size, rng.normal(0.28, 0.03), rng.normal(0.27, 0.02) * size, rng.normal(0.32, 0.02), 0.18)
    spine = np.exp(-((x / 0.09) ** 2)) * 0.18
    ribs = np.maximum(np.sin((y * rng.normal(19, 0.6) + np.abs(x) * 5) + rng.uniform(0, 6.3)), 0) ** 3 * 0.09
    image = body * (0.62 + spine) - air * rng.normal(0.44, 0.02) * (1 - 0.75 * heart) + ribs * body
    image += _opacity(phantom.severity, rng, air, x, y, size)
    gamma, gain = np.exp(rng.normal(0, 0.12)), rng.normal(1.0, 0.05)
    image = np.clip(image, 0, 1) ** gamma * gain
    image += rng.normal(0, rng.uniform(0.01, 0.03), image.shape)
    return np.asarray(np.clip(image, 0, 1) * 255, np.uint8)


def _opacity(severity: float, rng: np.random.Generator, air: Any, x: Any, y: Any, size: float) -> Any:
    """Consolidation inside the lungs; its brightness grows with severity and is all that tells the classes apart."""
    strength = 0.42 / (1 + np.exp(-1.3 * severity))
    cloud = np.zeros_like(air)
    for side in (-1, 1):
        cx, cy = side * 0.42 * size + rng.normal(0, 0.07), rng.uniform(-0.30, 0.35)
        radius = rng.uniform(0.22, 0.34)
        cloud += np.exp(-(((x - cx) / radius) ** 2 + ((y - cy) / (radius * 1.3)) ** 2))
    return strength * np.minimum(cloud, 1) * air


def encode(image: npt.NDArray[np.uint8]) -> bytes:
    """JPEG bytes at quality 90."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _write(task: tuple[Phantom, str]) -> None:
    phantom, folder = task
    (Path(folder) / contract.LABELS[phantom.label] / phantom.name).write_bytes(encode(draw(phantom)))


def fetch(config: DataConfig, out: Path) -> None:
    """Draw `config.num_images` radiographs into class folders under `out`; nothing is done where they are there.

    latents.csv (name, label, severity) beside the class folders is what an oracle knows. Raises DataError where `out`
    holds other files.
    """
    wanted = {
        "source": "phantom",
        "synthetic": True,
        "root": ".",
        "num_images": config.num_images,
        "seed": config.seed,
        "version": _VERSION,
    }
    check_replaceable(out, "phantom")
    if (out / SOURCE_FILE).is_file() and read_source(out) == wanted:
        print(f"fetch: {out} is up to date, {config.num_images} synthetic radiographs", file=sys.stderr)
        return
    phantoms = plan(config.num_images, config.seed)
    print(f"fetch: drawing {len(phantoms)} synthetic radiographs", file=sys.stderr)
    with replace_directory(out) as building:
        for label in contract.LABELS:
            (building / label).mkdir()
        tasks = [(phantom, str(building)) for phantom in phantoms]
        for _ in parallel_map(_write, tasks, config.workers, "fetch"):
            pass
        rows = [f"{phantom.name},{contract.LABELS[phantom.label]},{phantom.severity:.6f}\n" for phantom in phantoms]
        write_text(building / LATENTS_FILE, "name,label,severity\n" + "".join(rows))
        write_json(building / SOURCE_FILE, wanted)


def version(config: DataConfig) -> str:
    """What decides every pixel that is drawn."""
    return f"{config.num_images} {config.seed} {_VERSION}"
