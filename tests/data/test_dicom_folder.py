"""Folders of DICOM files: patients by their hashed number, and no identity in what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pneumonia.core.dicom import SALT_ENV, patient_key
from pneumonia.errors import DataError
from tests.dicoms import NAME, dicom
from tests.xray_folders import noise, prepare_folder


def stored(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4096, (80, 64), dtype=np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 patients, each with two images under names that say nothing."""
    root = tmp_path / "pacs"
    for seed in range(48):
        path = root / ("NORMAL" if seed < 24 else "PNEUMONIA") / f"export{seed}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(stored(seed), 12, PatientID=f"MRN-{seed // 2}"))
    return root


def test_images_of_one_patient_stay_together_and_nobody_is_named(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = prepare_folder(folder, tmp_path / "out")
    assert data.manifest["patients_from"] == "PatientID"
    assert data.manifest["counts"]["patients"] == 24
    part_of: dict[str, set[str]] = {}
    for path, part in zip(data.index["path"], data.index["split"], strict=True):
        key = patient_key(folder / path)
        assert key in data.index["patient"]
        part_of.setdefault(str(key), set()).add(part)
    assert {len(parts) for parts in part_of.values()} == {1}
    printed = capfd.readouterr()
    texts = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    for word in (b"MRN-", NAME.encode()):
        assert [text for text in [*texts, printed.out.encode(), printed.err.encode()] if word in text] == []


def test_another_salt_prepares_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare_folder(folder, tmp_path / "out").index["patient"]
    monkeypatch.setenv(SALT_ENV, "secret")
    assert set(prepare_folder(folder, tmp_path / "out").index["patient"]).isdisjoint(before)


def test_an_image_without_a_patient_is_not_grouped_in_silence(folder: Path, tmp_path: Path) -> None:
    (folder / "NORMAL" / "export0.dcm").write_bytes(dicom(stored(0), 12, PatientID=""))
    (folder / "NORMAL" / "plain.jpeg").write_bytes(noise(1))
    with pytest.raises(DataError, match=r"2 of 49 images have no patient by PatientID, such as export0\.dcm"):
        prepare_folder(folder, tmp_path / "out")
