"""An opened prepared data set: pixel cache, index and manifest."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.errors import DataError

COLUMNS = ("path", "label", "patient", "split", "group", "sha256")


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set of N images. What `manifest` holds is said in data/prepare.py."""

    path: Path
    manifest: dict[str, Any]
    index: dict[str, list[str]]
    """Columns path, label, patient, split, group, sha256, each of N strings."""

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class index by image, (N,)."""
        return np.array([contract.LABELS.index(label) for label in self.index["label"]], np.int64)

    @cached_property
    def patients(self) -> npt.NDArray[np.str_]:
        """Patient key by image, (N,)."""
        return np.array(self.index["patient"])

    @cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Grey pixels (N, 224, 224), memory-mapped read-only."""
        return np.asarray(np.load(self.path / contract.PIXELS_FILE, mmap_mode="r")).view()

    def indices(self, part: str) -> npt.NDArray[np.int64]:
        """Rows of `train`, `val` or `test`, ascending."""
        if part not in contract.SPLITS:
            raise ValueError(f"part {part!r}, expected one of {', '.join(contract.SPLITS)}")
        return np.flatnonzero(np.array(self.index["split"]) == part)


def load_prepared(path: Path) -> PreparedData:
    """Open what `prepare` wrote. Raises DataError where it is missing or damaged."""
    try:
        manifest = json.loads((path / contract.DATA_MANIFEST).read_text("utf-8"))
        with (path / contract.INDEX_FILE).open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            rows = list(csv.DictReader(stream))
        data = PreparedData(path, manifest, {name: [row[name] for row in rows] for name in COLUMNS})
        unused = data.index["split"].count(contract.UNUSED)
        cached, indexed = len(data.pixels), len(data.labels)
        counted = sum(manifest["counts"]["by_split"].values()) + unused
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no prepared data set ({error.filename} is missing); run `pneumoctl data prepare`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{path}: damaged prepared data set ({error}); delete it and prepare again") from error
    if not cached == indexed == counted:
        raise DataError(
            f"{path}: {cached} cached images, {indexed} in the index, {counted} in the manifest; delete it and "
            "prepare again"
        )
    return data
