"""PneumoniaMNIST (Yang et al. 2023, doi:10.1038/s41597-022-01721-8): a published split, and no patients."""

from __future__ import annotations

import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumonia import contract
from pneumonia.config.schema import DataConfig
from pneumonia.core.image import MIN_SIDE
from pneumonia.core.preprocess import FILTERS
from pneumonia.data.download import download, downloads_for, remove_downloads
from pneumonia.data.sources import SOURCE_FILE, check_replaceable, read_source
from pneumonia.errors import DataError
from pneumonia.files import replace_directory, write_json

_RECORD = "https://zenodo.org/records/10519652/files"
FILES = {
    28: ("pneumoniamnist.npz", "28209eda62fecd6e6a2d98b1501bb15f"),
    224: ("pneumoniamnist_224.npz", "d6a3c71de1b945ea11211b03746c1fe1"),
}
"""File name and MD5 by the side of the images in pixels."""


def fetch(config: DataConfig, out: Path) -> None:
    """Download the images and write them as PNG to out/<part>/<CLASS>/; nothing is done where they are there already.

    Raises SourceUnavailable where the server does not answer, DataError where the file is another than the published
    one or `out` holds other files.
    """
    name, published = FILES[config.medmnist_size]
    wanted: dict[str, Any] = {"source": "medmnist", "synthetic": False, "root": ".", "published_split": True,
              "size": config.medmnist_size, "md5": config.medmnist_md5 or published}  # fmt: skip
    if config.medmnist_size < MIN_SIDE:
        wanted["enlarged_to"] = contract.IMAGE_SIZE
    check_replaceable(out, "medmnist")
    if _up_to_date(out, wanted):
        remove_downloads(out)
        return
    url = config.medmnist_url or f"{_RECORD}/{name}?download=1"
    with downloads_for(out) as folder:
        if _up_to_date(out, wanted):  # by another process, while this one waited
            return
        file = download(url, folder / name, str(wanted["md5"]))
        try:
            with np.load(file, allow_pickle=False) as arrays, replace_directory(out) as building:
                for part in contract.SPLITS:
                    _write_part(arrays, part, config.medmnist_size, building / part)
                write_json(building / SOURCE_FILE, wanted)
        except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{url}: not a file of MedMNIST's layout ({error})") from error


def version(config: DataConfig) -> str:
    """The MD5 of the file that `fetch` takes."""
    return f"{config.medmnist_size} {config.medmnist_md5 or FILES[config.medmnist_size][1]}"


def _up_to_date(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether `out` holds what an earlier fetch of the same file put there."""
    if not (out / SOURCE_FILE).is_file() or read_source(out) != wanted:
        return False
    print(f"fetch: {out} is up to date, PneumoniaMNIST", file=sys.stderr)
    return True


def _write_part(arrays: Any, part: str, size: int, folder: Path) -> None:
    """One part's images as PNG. Raises ValueError where its arrays have another shape, dtype or other labels."""
    images: npt.NDArray[np.uint8] = arrays[f"{part}_images"]  # (N, size, size)
    labels: npt.NDArray[np.uint8] = arrays[f"{part}_labels"]  # (N, 1): 0 normal, 1 pneumonia
    if images.dtype != np.uint8 or images.shape[1:] != (size, size):
        raise ValueError(f"{part}_images is {images.dtype} {images.shape}, expected uint8 (N, {size}, {size})")
    if labels.shape != (len(images), 1) or not np.isin(labels, range(len(contract.LABELS))).all():
        raise ValueError(f"{part}_labels is {labels.shape}, expected ({len(images)}, 1) of 0 and 1")
    for label in contract.LABELS:
        (folder / label).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels[:, 0], strict=True)):
        picture = Image.fromarray(image)
        if size < MIN_SIDE:
            # Sites may not send images as small as these; here they are what was asked for.
            picture = picture.resize((contract.IMAGE_SIZE, contract.IMAGE_SIZE), FILTERS[contract.RESAMPLE])
        picture.save(folder / contract.LABELS[label] / f"{number:05d}.png")
    print(f"fetch: {len(images)} images of {part}", file=sys.stderr)
