"""What a server image says before it becomes Triton. The images themselves: tests/e2e/test_images.py."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.errors import BundleError, BundleNotFound, Refused, StorageError, UsageError
from pneumonia.release.publish import publish
from pneumonia.release_manifest import release_name
from pneumonia.triton.container import server_command
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of a bundle that says it was trained on drawn images."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("synthetic") / "models", data={"synthetic": True})
    return publish(bundle.path, tmp_path_factory.mktemp("releases"))


def test_flags_are_handed_on(release: Path) -> None:
    command = server_command([str(release), "--http-port=9000", "--log-verbose=1"])
    assert command[:2] == ["tritonserver", f"--model-repository={release}"]
    assert command[-2:] == ["--http-port=9000", "--log-verbose=1"]


@pytest.mark.parametrize("arguments", [[], ["--http-port=8000"]])
def test_a_repository_is_needed(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="pneumonia-triton REPOSITORY"):
        server_command(arguments)


def test_an_empty_and_a_missing_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleNotFound, match=r"no release \(pneumonia_detection/config.pbtxt is missing\)"):
            server_command([str(folder)])


@pytest.mark.parametrize("value", [None, "", "0", "true"])
def test_a_model_of_drawn_images_is_refused(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(contract.ALLOW_SYNTHETIC_ENV, raising=False)
    if value is not None:
        monkeypatch.setenv(contract.ALLOW_SYNTHETIC_ENV, value)
    with pytest.raises(Refused, match=f"drawn images.*{contract.ALLOW_SYNTHETIC_ENV}=1"):
        server_command([str(synthetic)])


def test_it_is_served_where_that_is_allowed(synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(contract.ALLOW_SYNTHETIC_ENV, "1")
    assert server_command([str(synthetic)])[0] == "tritonserver"


def test_hiding_it_in_the_manifest_is_noticed(synthetic: Path, tmp_path: Path) -> None:
    changed = tmp_path / "release"
    shutil.copytree(synthetic, changed)
    path = changed / contract.ENSEMBLE / contract.MODEL_VERSION / contract.BUNDLE_MANIFEST
    manifest = json.loads(path.read_text())
    manifest["data"]["synthetic"] = False
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="was changed after it was written"):
        server_command([str(changed)])


@pytest.mark.parametrize("file", ["pneumonia_detection/1/model.py", "pneumonia_detection/1/model.onnx"])
def test_a_release_that_was_changed_is_named_and_not_served(release: Path, tmp_path: Path, file: str) -> None:
    changed = tmp_path / "release"
    shutil.copytree(release, changed)
    with (changed / file).open("ab") as stream:
        stream.write(b"\n#")
    with pytest.raises(BundleError, match=f"{file}: was changed after the release was written"):
        server_command([str(changed)])


def test_a_release_whose_empty_files_were_dropped_on_the_way_is_served(tmp_path: Path) -> None:
    """As releases of earlier versions arrive from a bucket."""
    bundle = tiny_bundle(tmp_path / "models")
    dropped = publish(bundle.path, tmp_path, backend="onnxruntime")
    manifest = json.loads((dropped / contract.RELEASE_MANIFEST).read_text())
    manifest["files"]["pneumonia_detection/1/.keep"] = hashlib.sha256(b"").hexdigest()
    manifest["release"] = release_name(manifest)
    (dropped / contract.RELEASE_MANIFEST).write_text(json.dumps(manifest))
    shutil.rmtree(dropped / "pneumonia_detection" / "1")
    served = Path(server_command([str(dropped)])[1].partition("=")[2])
    assert served != dropped and (served / "pneumonia_detection" / "1").is_dir()
    graph = Path("pneumonia_vit", "1", contract.ONNX_FILE)
    assert (served / graph).read_bytes() == (dropped / graph).read_bytes()
    shutil.rmtree(served)


def test_a_release_that_may_not_be_read(release: Path, tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may read everything; tests/e2e/test_images.py has this case")
    locked = tmp_path / "release"
    shutil.copytree(release, locked)
    locked.chmod(0o000)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            server_command([str(locked)])
    finally:
        locked.chmod(0o700)


def test_the_command_says_it_in_one_line(synthetic: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != contract.ALLOW_SYNTHETIC_ENV}
    command = [sys.executable, "-m", "pneumonia.triton.container", str(synthetic)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {synthetic}: tiny was trained on drawn images")
    assert done.stderr.count("\n") == 1


def test_an_older_release_runs_this_versions_code(tmp_path: Path) -> None:
    """Its own warms up with a blank image, which the library refuses; the rest of it stays as it was published."""
    bundle = tiny_bundle(tmp_path / "models")
    release = publish(bundle.path, tmp_path / "root", "onnxruntime")
    (flag,) = [word for word in server_command([str(release)]) if word.startswith("--model-repository=")]
    assert flag == f"--model-repository={release}"
    step = Path("pneumonia_preprocess") / "1" / "model.py"
    current = (release / step).read_bytes()
    older = published_with(release, tmp_path / "older", step, b"raise SystemExit('blank')\n")
    (flag,) = [word for word in server_command([str(older)]) if word.startswith("--model-repository=")]
    linked = Path(flag.removeprefix("--model-repository="))
    assert linked != older and (linked / step).read_bytes() == current
    kept = {path.relative_to(older) for path in older.rglob("*") if path.is_file()} - {step}
    assert kept and all((linked / name).resolve() == (older / name).resolve() for name in kept)


def published_with(release: Path, target: Path, name: Path, data: bytes) -> Path:
    """A release that was published with another file, under its own digest."""
    shutil.copytree(release, target)
    (target / name).write_bytes(data)
    manifest = json.loads((target / contract.RELEASE_MANIFEST).read_text("utf-8"))
    manifest["files"][str(name)] = hashlib.sha256(data).hexdigest()
    del manifest["release"]
    (target / contract.RELEASE_MANIFEST).write_text(json.dumps({"release": release_name(manifest), **manifest}))
    return target
