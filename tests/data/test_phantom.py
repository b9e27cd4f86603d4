"""source=phantom: deterministic, learnable, and with exactly as much overlap as it says."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.config.schema import Config, DataConfig
from pneumonia.core.metrics import point_metrics
from pneumonia.data.patients import patient_of
from pneumonia.data.prepare import PreparedData, prepare
from pneumonia.data.sources import fetch
from pneumonia.data.sources.folder import list_images
from pneumonia.data.sources.phantom import LATENTS_FILE, plan

COUNT = 600


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch(DataConfig(source="phantom", num_images=COUNT), tmp_path_factory.mktemp("phantom") / "raw")


@pytest.fixture(scope="module")
def prepared(fetched: Path) -> PreparedData:
    return prepare(Config(), fetched, fetched.parent / "prepared")


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def auroc(labels: np.ndarray, score: np.ndarray) -> float:
    """AUROC of any score; ranks serve as probabilities."""
    ranks = np.argsort(np.argsort(score)) / len(score)
    return point_metrics(labels, ranks, 0.5)["auroc"]


def block_features(data: PreparedData) -> np.ndarray:
    """Means of 14x14 blocks, (N, 257) with a constant."""
    blocks = data.pixels.reshape(len(data.pixels), 16, 14, 16, 14).mean(axis=(2, 4)).reshape(-1, 256)
    scaled = (blocks - blocks.mean(axis=0)) / (blocks.std(axis=0) + 1e-6)
    return np.c_[scaled, np.ones(len(scaled))]


def learned_auroc(features: np.ndarray, labels: np.ndarray, data: PreparedData) -> float:
    """AUROC on test of a ridge regression from blocks to labels, fitted on train."""
    train, test = data.indices("train"), data.indices("test")
    x, y = features[train], labels[train] - labels[train].mean()
    weights = np.linalg.solve(x.T @ x + 300 * np.eye(x.shape[1]), x.T @ y)
    return auroc(labels[test], features[test] @ weights)


def test_one_seed_draws_the_same_bytes_whatever_the_processes_and_another_seed_others(tmp_path: Path) -> None:
    one = content(fetch(DataConfig(source="phantom", num_images=130, workers=1), tmp_path / "one"))
    two = content(fetch(DataConfig(source="phantom", num_images=130, workers=2), tmp_path / "two"))
    assert one == two
    other = content(fetch(DataConfig(source="phantom", num_images=130, seed=43), tmp_path / "other"))
    assert not set(one.values()) & set(other.values())


def test_files_classes_and_patients_are_like_the_kaggle_set(fetched: Path) -> None:
    listed = list_images(fetched)
    assert len(listed) == COUNT
    ill = sum(entry.label for entry in listed)
    assert 2.2 < ill / (COUNT - ill) < 3.3
    images: dict[str, set[int]] = {}
    count: dict[str, int] = {}
    for entry in listed:
        key = patient_of(Path(entry.path).name)
        assert key is not None
        images.setdefault(key, set()).add(entry.label)
        count[key] = count.get(key, 0) + 1
    assert all(len(labels) == 1 for labels in images.values())
    assert 0.2 < np.mean([number > 1 for number in count.values()]) < 0.5


def test_images_vary_in_size_exposure_and_noise(fetched: Path) -> None:
    from PIL import Image

    images = [np.asarray(Image.open(path)) for path in sorted(fetched.rglob("*.jpeg"))[:60]]
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    assert len({image.shape for image in images}) > 50
    assert min(min(image.shape) for image in images) >= 224
    assert np.std([image.mean() for image in images]) > 4


def test_the_oracle_reaches_what_it_should(fetched: Path) -> None:
    with (fetched / LATENTS_FILE).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    labels = np.array([contract.LABELS.index(row["label"]) for row in rows])
    assert 0.98 <= auroc(labels, np.array([float(row["severity"]) for row in rows])) <= 0.995
    listed = {Path(entry.path).name: entry.label for entry in list_images(fetched)}
    assert {row["name"]: label for row, label in zip(rows, labels.tolist(), strict=True)} == listed


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_overlap_does_not_depend_on_the_seed(seed: int) -> None:
    phantoms = plan(2000, seed)
    labels = np.array([phantom.label for phantom in phantoms])
    assert 0.98 <= auroc(labels, np.array([phantom.severity for phantom in phantoms])) <= 0.995


def test_the_drawing_shows_the_severity_and_shuffled_labels_teach_nothing(prepared: PreparedData) -> None:
    features = block_features(prepared)
    assert learned_auroc(features, prepared.labels, prepared) > 0.90
    rng = np.random.default_rng(0)
    shuffled = [learned_auroc(features, rng.permutation(prepared.labels), prepared) for _ in range(40)]
    assert np.mean(shuffled) == pytest.approx(0.5, abs=0.07)


def test_what_is_made_from_it_says_synthetic(prepared: PreparedData) -> None:
    assert (prepared.manifest["source"], prepared.manifest["synthetic"]) == ("phantom", True)


def test_fetching_again_draws_only_when_asked_for_others(tmp_path: Path) -> None:
    raw = fetch(DataConfig(source="phantom", num_images=40), tmp_path / "raw")
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    fetch(DataConfig(source="phantom", num_images=40), raw)
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before
    fetch(DataConfig(source="phantom", num_images=41), raw)
    assert len(list_images(raw)) == 41
