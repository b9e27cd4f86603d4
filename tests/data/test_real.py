"""The real X-rays: what is known of them comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.data.prepare import PreparedData
from tests.xray_folders import prepare_folder


@pytest.fixture(scope="module")
def real(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_folder(xrays, tmp_path_factory.mktemp("real"))


def test_every_image_is_read_and_the_known_duplicates_are_dropped(real: PreparedData) -> None:
    assert real.manifest["unreadable"] == []
    assert len(real.manifest["duplicates"]) == 26
    assert len(real.labels) == 5216 - 26
    assert real.manifest["counts"]["patients"] == 2635
    assert sorted(set(real.index["group"])) == ["IM", "NORMAL2", "bacteria", "virus"]
    assert not real.manifest["synthetic"]


def test_no_child_is_in_two_parts(real: PreparedData) -> None:
    # Read from the names here, apart from the library's own reading of them.
    numbers = [
        name.split("_")[0] if name.startswith("person") else "IM" + name.split("IM-")[1].split("-")[0]
        for name in (Path(path).name for path in real.index["path"])
    ]
    parts: dict[str, set[str]] = {}
    for number, part in zip(numbers, real.index["split"], strict=True):
        parts.setdefault(number, set()).add(part)
    assert len(parts) == 2635
    assert [number for number, found in parts.items() if len(found) > 1] == []


def test_parts_and_classes_keep_their_shares(real: PreparedData) -> None:
    everywhere = real.labels.mean()
    for part, share in zip(contract.SPLITS, (0.70, 0.15, 0.15), strict=True):
        rows = real.indices(part)
        assert len(rows) / len(real.labels) == pytest.approx(share, abs=0.01)
        assert real.labels[rows].mean() == pytest.approx(everywhere, abs=0.01)


def test_the_pixels_are_radiographs_in_full_range(real: PreparedData) -> None:
    sample = np.asarray(real.pixels[::50])
    assert sample.min() < 10
    assert sample.max() > 245
    assert (sample.reshape(len(sample), -1).std(axis=1) > 15).all()
