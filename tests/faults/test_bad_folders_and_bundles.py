"""The rows of data folders and bundles, through the library and every command that opens one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.config.compose import compose
from pneumonia.data.prepare import prepare
from pneumonia.data.sources import fetch
from pneumonia.errors import BundleError, BundleNotFound, DataError
from pneumonia.inference.predictor import open_predictor
from pneumonia.release.publish import publish
from tests.faults.children import pneumoctl, unprivileged
from tests.faults.rows import BUNDLES, FOLDERS, Row, jpeg

folders = pytest.mark.parametrize("row", FOLDERS, ids=str)
bundles = pytest.mark.parametrize("row", BUNDLES, ids=str)


@folders
def test_a_bad_folder_in_the_library(row: Row, tmp_path: Path) -> None:
    assert row.make is not None
    root = row.make(tmp_path / "xrays")
    config = compose(["data=folder", f"data.root={root}", "data.workers=1", *row.overrides])
    with unprivileged(), pytest.raises(DataError) as caught:
        prepare(config, fetch(config.data, tmp_path / "raw"), tmp_path / "prepared")
    assert row.words in str(caught.value)
    assert caught.value.exit_code == row.code
    assert not (tmp_path / "prepared").exists()


@folders
def test_a_bad_folder_on_the_command_line(row: Row, tmp_path: Path) -> None:
    assert row.make is not None
    root = row.make(tmp_path / "xrays")
    words = ["data", "prepare", "data=folder", f"data.root={root}", "data.workers=1", *row.overrides]
    pneumoctl(tmp_path, *words, restricted=True).fails(row.code, row.words)
    assert not (tmp_path / "data" / "prepared").exists()


@pytest.fixture
def broken(row: Row, bundle: Bundle, tmp_path: Path) -> Path:
    assert row.make is not None
    return row.make(Path(shutil.copytree(bundle.path, tmp_path / "models")))


@bundles
def test_a_bad_bundle_in_the_library(row: Row, broken: Path, tmp_path: Path) -> None:
    for use in (open_bundle, lambda path: open_predictor("onnx", path), lambda path: publish(path, tmp_path / "root")):
        with pytest.raises((BundleError, BundleNotFound)) as caught:
            use(broken)
        assert row.words in str(caught.value)
        assert caught.value.exit_code == row.code
    assert not (tmp_path / "root").exists()


@bundles
def test_a_bad_bundle_on_the_command_line(row: Row, broken: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpeg").write_bytes(jpeg())
    for words in (["infer", tmp_path / "x.jpeg"], ["serve"], ["publish", "--root", tmp_path / "root"]):
        pneumoctl(tmp_path, *words, "--bundle", broken).fails(row.code, row.words)
    assert not (tmp_path / "root").exists()


def test_the_server_takes_no_release_that_was_changed(release: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(release, tmp_path / "release"))
    path = copy / contract.ENSEMBLE / "1" / contract.ONNX_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    pneumoctl(tmp_path, "serve", "--release", copy).fails(3, "model.onnx: was changed after the release was written")
