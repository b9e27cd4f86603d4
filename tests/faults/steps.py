"""The steps that are killed, and what each of them leaves."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.config.schema import Config, DataConfig, SplitConfig
from pneumonia.data.prepare import PreparedData
from pneumonia.data.sources import SOURCE_FILE, fetch, read_source
from pneumonia.errors import BundleNotFound
from pneumonia.release.publish import publish
from pneumonia.release_manifest import verify_release
from tests.phantoms import OPEN_GATE, smoke_config


def fetch_step(folder: Path, seed: int) -> None:
    fetch(DataConfig(source="phantom", num_images=40, seed=seed, workers=1), folder / "raw")


def fetch_medmnist_step(folder: Path, url: str, md5: str) -> None:
    config = DataConfig(source="medmnist", medmnist_size=28, medmnist_url=url, medmnist_md5=md5)
    fetch(config, folder / "raw")


def fetch_kaggle_step(folder: Path, proxy: str, token: str) -> None:
    # In a child of its own, whose environment nobody else reads.
    os.environ.update({"HOME": str(folder.parent), "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": proxy,
                       "KAGGLE_API_TOKEN": token})  # fmt: skip
    fetch(DataConfig(source="kaggle"), folder / "raw")


def unfetch(folder: Path) -> None:
    shutil.rmtree(folder / "raw", ignore_errors=True)


def downloaded(folder: Path) -> str | None:
    """Digest of every file, the note among them."""
    raw = folder / "raw"
    if not raw.exists():
        return None
    read_source(raw)
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    return hashlib.sha256(
        b"".join(str(path.relative_to(raw)).encode() + path.read_bytes() for path in files)
    ).hexdigest()


def fetched(folder: Path) -> str | None:
    """Digest of every file; the note must be there and say how many images there are."""
    raw = folder / "raw"
    if not raw.exists():
        return None
    assert read_source(raw)["num_images"] == len(list(raw.rglob("*.jpeg")))
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def prepare_step(folder: Path, root: Path, seed: int) -> None:
    from pneumonia.data.prepare import prepare

    config = Config(data=DataConfig(source="folder", root=str(root), workers=1), split=SplitConfig(seed=seed))
    prepare(config, fetch(config.data, folder / "raw"), folder / "prepared")


def prepared(folder: Path) -> str | None:
    from pneumonia.data.prepare import load_prepared

    if not (folder / "prepared").exists():
        return None
    assert not (folder / "raw").exists() or (folder / "raw" / SOURCE_FILE).exists()
    return str(load_prepared(folder / "prepared").manifest["digest"])


def publish_step(folder: Path, bundle: Path) -> None:
    publish(bundle, folder / "root")


def unpublish(folder: Path) -> None:
    shutil.rmtree(folder / "root", ignore_errors=True)


def released(folder: Path) -> tuple[str, ...]:
    """Releases that a server may be pointed at, each verified."""
    found = sorted((folder / "root" / contract.RELEASES_DIR).glob("[0-9a-f]*"))
    return tuple(verify_release(path)["digest"] for path in found)


def train_step(folder: Path, data: Path, seed: int) -> None:
    from pneumonia.training.train import train

    train(smoke_config(folder, f"training.seed={seed}"), data, folder / "run" / "bundle")


def export_step(folder: Path, bundle: Path, evaluation: Path, data: Path) -> None:
    from pneumonia.export.to_onnx import export_onnx

    export_onnx(smoke_config(folder, *OPEN_GATE), bundle, evaluation, data, folder / "models")


def _bundle(path: Path) -> Any:
    try:
        return open_bundle(path).digest
    except BundleNotFound:
        assert not path.exists()
        return None


def trained(folder: Path) -> Any:
    return _bundle(folder / "run" / "bundle")


def exported(folder: Path) -> Any:
    return _bundle(folder / "models")


def export(bundle: Bundle, data: PreparedData, folder: Path) -> tuple[Any, Any, Any]:
    """Step, versions and state of an export: of `bundle`, and of the same with another threshold."""
    from pneumonia.bundle import extend_bundle
    from pneumonia.evaluation.evaluate import evaluate

    # Near the bundle's own: an export is refused where all test images get one answer.
    other = extend_bundle(bundle, folder / "other", {}, threshold=bundle.manifest.threshold * 0.999)
    versions = []
    for number, path in enumerate((bundle.path, other.path)):
        evaluation = folder / f"evaluation-{number}"
        evaluate(smoke_config(folder), path, data.path, evaluation)
        versions.append((path, evaluation, data.path))
    return export_step, tuple(versions), exported
