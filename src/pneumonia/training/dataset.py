"""Prepared pixels as batches: oversampled and augmented for training, plain for everything else."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pneumonia.config.schema import AugmentConfig
from pneumonia.core.preprocess import Preprocessing, normalize
from pneumonia.data.prepare import PreparedData
from pneumonia.training.augment import augment


def training_rows(data: PreparedData, oversample: bool, seed: int) -> npt.NDArray[np.int64]:
    """Rows of the training split, the smaller class repeated to the size of the larger when `oversample`.

    Only the training split is touched, and only after it was made: a copy never reaches validation or test.
    """
    rows: npt.NDArray[np.int64] = data.indices("train")
    if not oversample:
        return rows
    from imblearn.over_sampling import RandomOverSampler

    sampler = RandomOverSampler(random_state=seed)
    chosen, _ = sampler.fit_resample(rows[:, None], data.labels[rows])
    return np.asarray(chosen[:, 0], np.int64)


class PixelDataset(torch.utils.data.Dataset[dict[str, int]]):
    """Rows of a prepared data set. An item only names its place; the collator reads whole batches."""

    def __init__(self, rows: npt.NDArray[np.int64]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, int]:
        return {"position": position, "row": int(self.rows[position])}


class Collator:
    """Items to {"pixel_values": float32 (B, 3, 224 / pool, 224 / pool), "labels": int64 (B,)}.

    pool: side of the squares of pixels that the model averages first (its input_pool). They are averaged here, before
    the random changes, which then have that much less to do. changes: random changes to apply, None for none. They are
    drawn from `seed` and the batch's places alone, so that a resumed run sees what the uninterrupted one would have
    seen, whatever was prefetched in between.
    """

    def __init__(self, data: PreparedData, changes: AugmentConfig | None, seed: int, pool: int = 1) -> None:
        self.data = data
        self.changes = changes
        self.seed = seed
        self.pixels = data.pixels if pool == 1 else _all_pooled(data.pixels, pool)
        self.spec = Preprocessing.from_json(data.manifest["preprocessing"])

    def __call__(self, items: list[dict[str, int]]) -> dict[str, Any]:
        rows = np.array([item["row"] for item in items])
        gray = np.asarray(self.pixels[rows])  # (B, 224 / pool, 224 / pool)
        if self.changes is not None:
            places = np.array([item["position"] for item in items], np.int64)
            generator = torch.Generator().manual_seed(zlib.crc32(places.tobytes(), self.seed & 0xFFFFFFFF))
            gray = augment(torch.from_numpy(gray), self.changes, generator).numpy()
        return {
            "pixel_values": torch.from_numpy(normalize(gray, self.spec)),
            "labels": torch.from_numpy(self.data.labels[rows]),
        }


def _all_pooled(pixels: npt.NDArray[np.uint8], pool: int) -> npt.NDArray[np.uint8]:
    """_pooled of all images (N, H, W), once instead of in every epoch; 12 KB an image."""
    count, height, width = pixels.shape
    small = np.empty((count, height // pool, width // pool), np.uint8)
    for start in range(0, count, 64):
        small[start : start + 64] = _pooled(np.asarray(pixels[start : start + 64]), pool)
    return small


def _pooled(gray: npt.NDArray[np.uint8], pool: int) -> npt.NDArray[np.uint8]:
    """Means of squares of pool x pool pixels, rounded half to even. Whole numbers take a third of floats' time."""
    sums = sum(gray[:, row::pool, column::pool].astype(np.uint16) for row in range(pool) for column in range(pool))
    means = np.rint(np.arange(255 * pool**2 + 1) / pool**2).astype(np.uint8)
    return np.take(means, sums, mode="clip")


def predict_logits(
    model: torch.nn.Module,
    data: PreparedData,
    rows: npt.NDArray[np.int64],
    batch_size: int = 64,
    title: str = "",
    change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
) -> npt.NDArray[np.float32]:
    """Logits (len(rows), 2) of `model`, float32, in the order of `rows`; says on stderr what was scored if `title`.

    change: what is done to the pixels of each image, (H, W) to (H, W), before the model sees it.
    """
    spec = Preprocessing.from_json(data.manifest["preprocessing"])
    device = next(model.parameters()).device
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            pixels = np.asarray(data.pixels[rows[start : start + batch_size]])
            if change is not None:
                pixels = np.stack([change(image) for image in pixels])
            pixel_values = torch.from_numpy(normalize(pixels, spec))
            parts.append(model(pixel_values=pixel_values.to(device)).logits.float().cpu().numpy())
    if title:
        print(f"{title}: {len(rows)} images scored", file=sys.stderr)
    return np.concatenate(parts)
