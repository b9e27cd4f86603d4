"""The one preprocessing path: training, evaluation, export checks and serving all call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumonia import contract
from pneumonia.core.image import decode_image
from pneumonia.errors import BundleError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a tensor; stored in a bundle and read from it, never assumed.

    size: side of the square in pixels. resample: Pillow's filter name, applied with anti-aliasing.
    mean, std: per channel, for values in 0..1. scaled_decoding: JPEG files are decoded at 1/2, 1/4 or 1/8 as long as
    both sides stay this many times `size`, which takes less time than all their pixels; None: never.
    """

    size: int = contract.IMAGE_SIZE
    resample: str = contract.RESAMPLE
    mean: tuple[float, float, float] = contract.PIXEL_MEAN
    std: tuple[float, float, float] = contract.PIXEL_STD
    scaled_decoding: float | None = contract.SCALED_DECODING

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Preprocessing:
        """Inverse of `to_json`. Raises BundleError on a missing key or a filter that is not known."""
        try:
            spec = cls(int(value["size"]), str(value["resample"]), tuple(value["mean"]), tuple(value["std"]),
                       # Bundles from before there was a choice were trained on images decoded whole.
                       None if value.get("scaled_decoding") is None else float(value["scaled_decoding"]))  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"preprocessing {value!r}: size, resample, mean and std are needed") from error
        if spec.resample not in FILTERS:
            raise BundleError(f"resample filter {spec.resample!r} is not one of {', '.join(FILTERS)}")
        if spec.scaled_decoding is not None and spec.scaled_decoding < 1:
            raise BundleError(f"scaled_decoding {spec.scaled_decoding}: expected 1 or more, or null")
        return spec

    @property
    def least_side(self) -> int | None:
        """For `decode_image`: what a side may shrink to before the resize, in pixels."""
        return None if self.scaled_decoding is None else round(self.scaled_decoding * self.size)


def pixels(data: bytes, spec: Preprocessing, name: str = "image") -> npt.NDArray[np.uint8]:
    """Encoded image -> uint8 (size, size), one grey channel, both sides scaled, nothing cropped.

    Raises ImageError.
    """
    image = decode_image(data, name, spec.least_side)
    if image.size != (spec.size, spec.size):
        image = image.resize((spec.size, spec.size), FILTERS[spec.resample])
    return np.asarray(image, dtype=np.uint8)


def normalize(gray: npt.NDArray[np.uint8], spec: Preprocessing) -> npt.NDArray[np.float32]:
    """uint8 (B, size, size) -> float32 (B, 3, size, size): the grey channel three times, each with its mean and std."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    batch = np.empty((len(gray), 3, *gray.shape[1:]), np.float32)
    # An image at a time, so that all of it stays in the cache: half the time of tables of 256 values.
    for image, planes in zip(gray, batch, strict=True):
        levels = image.astype(np.float32)
        levels /= np.float32(255)
        np.subtract(levels, mean, out=planes)
        planes /= std
    return batch


def preprocess(
    images: Sequence[bytes], spec: Preprocessing, names: Sequence[str] | None = None
) -> npt.NDArray[np.float32]:
    """Encoded images -> float32 (B, 3, size, size), ready for the tensor model.

    Raises ImageError naming the first image that cannot be decoded.
    """
    labels = names if names is not None else [f"image {position}" for position in range(len(images))]
    gray = [pixels(data, spec, label) for data, label in zip(images, labels, strict=True)]
    return normalize(np.stack(gray), spec)
