"""A release is whole, says what it holds, and never changes."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.errors import BundleError, BundleNotFound, StorageError
from pneumonia.release.publish import publish, publish_release
from pneumonia.release.stores import FolderStore
from pneumonia.release_manifest import read_release, release_name, verify_release
from tests.bundles import tiny_bundle
from tests.release.killing import die, killed


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every file: what would change if anything was written again."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_release_is_a_model_repository_named_by_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    release = publish(bundle.path, tmp_path)
    assert release == tmp_path / "releases" / release_name(read_release(release))
    assert (release / contract.ENSEMBLE / "config.pbtxt").is_file()
    assert (release / contract.ENSEMBLE / contract.MODEL_VERSION).is_dir()
    manifest = verify_release(release)
    assert manifest["digest"] == bundle.digest
    assert manifest["model_id"] == bundle.model_id
    assert manifest["models"] == sorted(path.name for path in release.iterdir() if path.is_dir())
    # A server under another user has to read it.
    assert stat.S_IMODE(release.stat().st_mode) & 0o055 == 0o055


def test_a_release_names_the_kubeflow_run_of_its_training(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "bundle", kubeflow_run="0b7c")
    assert verify_release(publish(made.path, tmp_path))["kubeflow_run"] == "0b7c"


def test_publishing_again_verifies_and_changes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    release = publish(bundle.path, tmp_path)
    before = listing(release)
    assert publish(bundle.path, tmp_path) == release
    assert listing(release) == before


def test_two_publications_are_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    first, second = publish(bundle.path, tmp_path / "a"), publish(bundle.path, tmp_path / "b")
    assert (first / contract.RELEASE_MANIFEST).read_bytes() == (second / contract.RELEASE_MANIFEST).read_bytes()
    assert str(tmp_path) not in (first / contract.RELEASE_MANIFEST).read_text("utf-8")


def test_a_release_holds_no_path_of_this_machine(bundle: Bundle, tmp_path: Path) -> None:
    release = publish(bundle.path, tmp_path)
    for path in release.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for machine in (str(tmp_path), os.getcwd(), str(Path.home()) + "/"):
                assert machine.encode() not in content, f"{path.relative_to(release)} names {machine}"


def test_a_half_written_release_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    half = tmp_path / "releases" / publish(bundle.path, tmp_path / "elsewhere").name
    (half / contract.ENSEMBLE).mkdir(parents=True)
    (half / contract.ENSEMBLE / "config.pbtxt").write_text("half")
    (half / "stray").write_text("left over")
    release = publish(bundle.path, tmp_path)
    verify_release(release)
    assert not (release / "stray").exists()
    assert (release / contract.ENSEMBLE / "config.pbtxt").read_text("utf-8") != "half"


def test_an_interrupted_publication_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails at the last file, the manifest: no folder that a server could take for a release may remain."""

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pneumonia.release.publish.write_json", full)
        with pytest.raises(StorageError, match="No space"):
            publish(bundle.path, tmp_path)
    assert list((tmp_path / "releases").iterdir()) == []
    verify_release(publish(bundle.path, tmp_path))


@pytest.mark.parametrize("harm", ["changed", "missing", "added"])
def test_a_changed_release_is_refused_and_named(bundle: Bundle, tmp_path: Path, harm: str) -> None:
    release = publish(bundle.path, tmp_path)
    victim = release / contract.ENSEMBLE / "config.pbtxt"
    if harm == "changed":
        victim.write_text(victim.read_text("utf-8") + "\n")
    elif harm == "missing":
        victim.unlink()
    else:
        victim = release / contract.ENSEMBLE / "extra"
        victim.write_text("x")
    with pytest.raises(BundleError, match=f"{victim.name}: "):
        publish(bundle.path, tmp_path)


def test_byte_code_beside_a_model_is_no_change(bundle: Bundle, tmp_path: Path) -> None:
    release = publish(bundle.path, tmp_path)
    (release / contract.ENSEMBLE / "1" / "__pycache__").mkdir(exist_ok=True)
    (release / contract.ENSEMBLE / "1" / "__pycache__" / "model.pyc").write_bytes(b"x")
    verify_release(release)


def test_a_bundle_without_graph_or_at_all(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound):
        publish(tmp_path / "nowhere", tmp_path)
    manifest = json.loads((bundle.path / contract.BUNDLE_MANIFEST).read_text("utf-8"))
    bare = tmp_path / "bare"
    shutil.copytree(bundle.path, bare)
    del manifest["files"][contract.ONNX_FILE], manifest["sha256"]
    (bare / contract.BUNDLE_MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="pneumoctl export"):
        publish(bare, tmp_path)
    assert not (tmp_path / "releases").exists()


def test_no_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="publish the bundle again"):
        read_release(tmp_path)


def test_another_library_version_or_backend_is_another_release(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release holds backend files of the library, so a newer library never finds an older one's in its place."""
    first = publish(bundle.path, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pneumonia.release.publish.__version__", "9.9.9")
        second = publish(bundle.path, tmp_path)
    assert first != second and read_release(second)["library_version"] == "9.9.9"
    assert publish(bundle.path, tmp_path, backend="onnxruntime") not in (first, second)
    verify_release(first)
    verify_release(second)


def test_a_manifest_that_was_changed_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    release = publish(bundle.path, tmp_path)
    path = release / contract.RELEASE_MANIFEST
    path.write_text(path.read_text("utf-8").replace(bundle.model_id, "other@000000000000"))
    with pytest.raises(BundleError, match=f"{contract.RELEASE_MANIFEST}: was changed"):
        verify_release(release)


def test_killed_at_every_step_there_is_no_half_release(bundle: Bundle, tmp_path: Path) -> None:
    """SIGKILL at the n-th change to the disk, for every n; the next publication is whole."""
    died, steps = True, 0
    while died:
        steps += 1
        root = tmp_path / str(steps)
        died = killed(_publish_and_die, bundle.path, root, steps)
        for release in FolderStore(root).releases():
            verify_release(root / "releases" / release)
        assert not [path for path in root.glob("releases/[!.]*") if not (path / contract.RELEASE_MANIFEST).exists()]
        verify_release(publish(bundle.path, root))
    assert steps > 20


def _publish_and_die(bundle: Path, root: Path, steps: int) -> None:
    """Publish, and die at the n-th write, rename or removal below `root`."""
    left = [steps]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        changes = event in ("os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir")
        if (writes or changes) and str(root) in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                die()

    sys.addaudithook(watch)
    publish(bundle, root)


def test_a_volume_is_named_as_servers_see_it(bundle: Bundle, tmp_path: Path) -> None:
    release = publish_release(bundle.path, tmp_path, served_from="pvc://models/")
    assert release.uri == f"pvc://models/releases/{release.name}"
    verify_release(tmp_path / "releases" / release.name)


def test_what_a_killed_publication_left_goes_after_a_day(bundle: Bundle, tmp_path: Path) -> None:
    old, fresh = tmp_path / "releases" / ".building.old", tmp_path / "releases" / ".building.fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    publish(bundle.path, tmp_path)
    assert not old.exists() and fresh.exists()
