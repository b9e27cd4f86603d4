"""Small folders of images that look like nothing, for tests of everything around the pixels."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pneumonia.config.schema import Config, DataConfig, SplitConfig
from pneumonia.data.prepare import PreparedData, prepare
from pneumonia.data.sources import fetch


def noise(seed: object) -> bytes:
    """A 64x80 JPEG that no other seed gives."""
    values = np.random.default_rng(list(str(seed).encode()))
    stream = io.BytesIO()
    Image.fromarray(values.integers(0, 256, (80, 64), np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def kaggle_names(normal: int = 24, pneumonia: int = 48) -> list[str]:
    """Class and name of files named as in the Kaggle set; every third patient has two images."""
    names = []
    for number in range(1, normal + 1):
        names += [f"NORMAL/IM-{number:04d}-0001.jpeg"]
        names += [f"NORMAL/NORMAL2-IM-{number:04d}-0001.jpeg"] if number % 3 == 0 else []
    for number in range(1, pneumonia + 1):
        names += [f"PNEUMONIA/person{number}_bacteria_{number}.jpeg"]
        names += [f"PNEUMONIA/person{number}_virus_{number + 100}.jpeg"] if number % 3 == 0 else []
    return names


def write_images(root: Path, names: Iterable[str]) -> Path:
    """An image of its own for every name, under `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(name))
    return root


def folder_config(root: Path, split: SplitConfig | None = None, **data: object) -> Config:
    """Configuration of source=folder."""
    settings = DataConfig(source="folder", root=str(root), **data)  # type: ignore[arg-type]
    return Config(data=settings, split=split or SplitConfig())


def prepare_folder(root: Path, out: Path, split: SplitConfig | None = None, **data: object) -> PreparedData:
    """Fetch and prepare `root` under `out`."""
    config = folder_config(root, split, **data)
    return prepare(config, fetch(config.data, out / "raw"), out / "prepared")
