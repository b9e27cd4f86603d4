"""kill -9 in the middle of a step leaves the old state or the new one, and a second run completes."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.data.prepare import PreparedData
from pneumonia.data.sources.kaggle import DATASET
from tests.bundles import tiny_bundle
from tests.data.test_kaggle import small_archive
from tests.faults import steps
from tests.faults.killed import survives
from tests.faults.steps import export
from tests.faults.test_bad_servers import wait_until
from tests.file_server import TOKEN, file_server
from tests.xray_folders import kaggle_names, write_images


def test_fetch(tmp_path: Path) -> None:
    survives(tmp_path / "work", steps.fetch_step, ((1,), (2,)), steps.fetched, rounds=50, seed=1)


def test_fetch_of_medmnist(tmp_path: Path) -> None:
    with file_server() as server:
        versions = []
        for number in (1, 2):
            rng = np.random.default_rng(number)
            parts: dict[str, Any] = {}
            for part in contract.SPLITS:
                parts[f"{part}_images"] = rng.integers(0, 256, (4, 28, 28), np.uint8)
                parts[f"{part}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
            stream = io.BytesIO()
            np.savez(stream, **parts)
            server.files[f"/{number}.npz"] = stream.getvalue()
            md5 = hashlib.md5(stream.getvalue(), usedforsecurity=False).hexdigest()
            versions.append((f"{server.address}/{number}.npz", md5))
        survives(tmp_path / "work", steps.fetch_medmnist_step, (versions[0], versions[1]), steps.downloaded, rounds=40,
                 seed=6)  # fmt: skip


def test_fetch_of_kaggle(tmp_path: Path) -> None:
    pytest.importorskip("kaggle", reason="kaggle is not installed; pip install 'pneumonia[data]'")
    with file_server() as server:
        server.files[f"/{DATASET}.zip"] = small_archive()
        version = (server.address, TOKEN)
        survives(tmp_path / "work", steps.fetch_kaggle_step, (version, version), steps.downloaded, rounds=9, seed=7,
                 before=steps.unfetch)  # fmt: skip


def test_prepare(tmp_path: Path) -> None:
    root = write_images(tmp_path / "xrays", kaggle_names(12, 24))
    survives(tmp_path / "work", steps.prepare_step, ((root, 1), (root, 2)), steps.prepared, rounds=50, seed=2)


def test_publish(bundle: Bundle, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "other", threshold=0.6)
    versions = ((bundle.path,), (other.path,))
    survives(tmp_path / "work", steps.publish_step, versions, steps.released, rounds=50, seed=3, before=steps.unpublish)


# A run takes seconds; tests/e2e kills each of them more often.
def test_train(prepared: PreparedData, tmp_path: Path) -> None:
    versions = ((prepared.path, 1), (prepared.path, 2))
    survives(tmp_path / "work", steps.train_step, versions, steps.trained, rounds=3, seed=4)


def test_export(trained: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    survives(tmp_path / "work", *export(trained, prepared, tmp_path), rounds=3, seed=5)


def test_the_processes_of_a_killed_command_end_too(tmp_path: Path) -> None:
    code = "from pneumonia.cli.app import main; main()"
    words = ["data", "fetch", "data=phantom", "data.num_images=4000", "data.workers=2", f"data.raw_dir={tmp_path}/raw"]
    with subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(helpers(process.pid)) >= 2)
        ours = helpers(process.pid)
        process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ours))


def helpers(parent: int) -> list[int]:
    """Processes that `parent` has spawned for its work."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
