"""A bundle is whole or refused."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, Manifest, extend_bundle, open_bundle, write_bundle
from pneumonia.errors import BundleError, BundleNotFound


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    source = tmp_path / "weights"
    source.write_bytes(b"weights " * 1000)
    manifest = Manifest(name="m", temperature=1.5, threshold=0.4, recall_target=0.95, data={"synthetic": True})
    return write_bundle(tmp_path / "bundle", manifest, {contract.WEIGHTS_FILE: source})


def test_what_is_written_is_read_back(bundle: Bundle) -> None:
    again = open_bundle(bundle.path)
    assert again.manifest == bundle.manifest
    assert again.digest == bundle.digest
    assert again.model_id == f"m@{bundle.digest[:12]}"
    assert again.manifest.synthetic
    assert again.file(contract.WEIGHTS_FILE).read_bytes() == b"weights " * 1000


def test_one_flipped_bit_in_a_file_is_noticed(bundle: Bundle) -> None:
    path = bundle.path / contract.WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.safetensors: SHA-256"):
        open_bundle(bundle.path)


def test_a_changed_threshold_changes_the_digest(bundle: Bundle, tmp_path: Path) -> None:
    other = extend_bundle(bundle, tmp_path / "other", {}, threshold=0.41)
    assert other.digest != bundle.digest


def test_missing_newer_and_damaged_bundles_say_what_to_do(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match="make demo") as caught:
        open_bundle(tmp_path / "none")
    assert caught.value.exit_code == 4
    manifest = bundle.path / contract.BUNDLE_MANIFEST
    text = manifest.read_text()
    manifest.write_text(text.replace('"schema_version": 2', '"schema_version": 3'))
    with pytest.raises(BundleError, match="schema version 3, this release reads 1 and 2"):
        open_bundle(bundle.path)
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match="not JSON"):
        open_bundle(bundle.path)
    value = json.loads(text)
    del value["temperature"]
    manifest.write_text(json.dumps(value))
    with pytest.raises(BundleError, match="temperature"):
        open_bundle(bundle.path)
    (bundle.path / contract.WEIGHTS_FILE).unlink()
    manifest.write_text(text)
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bundle.path)


def test_a_manifest_cannot_name_files_outside_the_bundle(bundle: Bundle) -> None:
    manifest = bundle.path / contract.BUNDLE_MANIFEST
    value = json.loads(manifest.read_text())
    value["files"] = {"../secret": "0" * 64}
    del value["sha256"]  # as whoever wants to be believed would
    manifest.write_text(json.dumps(value))
    with pytest.raises(BundleError, match="not a file of a bundle"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("name", ["model.pt", "modeling_evil.py", "../model.onnx", "model.onnx\x1b[2J"])
def test_a_bundle_holds_what_a_bundle_holds_and_nothing_that_could_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "w").write_bytes(b"x")
    manifest = Manifest(name="m", temperature=1, threshold=0.5, recall_target=0.95)
    with pytest.raises(BundleError, match="nothing that could run code") as caught:
        write_bundle(tmp_path / "b", manifest, {name: tmp_path / "w"})
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_a_bundle_of_schema_one_is_read_without_offset_and_marks_nothing(bundle: Bundle) -> None:
    manifest = bundle.path / contract.BUNDLE_MANIFEST
    value = json.loads(manifest.read_text())
    for name in ("offset", "sure", "sha256"):
        del value[name]
    manifest.write_text(json.dumps({**value, "schema_version": 1}))
    point = open_bundle(bundle.path).manifest.point
    assert (point.offset, point.sure) == (0.0, 0.5)
    assert point.temperature == bundle.manifest.temperature


@pytest.mark.parametrize(
    ("name", "value"), [("offset", float("nan")), ("sure", 0.4), ("sure", 1.2), ("offset", float("inf"))]
)
def test_an_operating_point_that_is_none_is_refused(bundle: Bundle, name: str, value: float) -> None:
    manifest = bundle.path / contract.BUNDLE_MANIFEST
    found = json.loads(manifest.read_text())
    del found["sha256"]
    manifest.write_text(json.dumps({**found, name: value}))
    with pytest.raises(BundleError, match="restore the bundle"):
        open_bundle(bundle.path)


def test_the_kubeflow_run_is_kept_and_missing_where_there_was_none(tmp_path: Path) -> None:
    manifest = Manifest(name="m", temperature=1, threshold=0.5, recall_target=0.95)
    plain = write_bundle(tmp_path / "plain", manifest, {})
    made = write_bundle(tmp_path / "made", replace(manifest, kubeflow_run="0b7c"), {})
    assert "kubeflow_run" not in json.loads((plain.path / contract.BUNDLE_MANIFEST).read_text())
    assert (open_bundle(plain.path).manifest.kubeflow_run, open_bundle(made.path).manifest.kubeflow_run) == ("", "0b7c")


def test_extending_in_place_keeps_the_old_files_and_leaves_nothing_behind(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(b"graph")
    extended = extend_bundle(bundle, bundle.path, {contract.ONNX_FILE: tmp_path / "graph"}, metrics={"test": {}})
    assert sorted(extended.manifest.files) == [contract.ONNX_FILE, contract.WEIGHTS_FILE]
    assert open_bundle(bundle.path).manifest.metrics == {"test": {}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "graph", "weights"]


def test_a_failed_write_leaves_the_old_bundle(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        extend_bundle(bundle, bundle.path, {contract.ONNX_FILE: tmp_path / "absent"})
    assert open_bundle(bundle.path).digest == bundle.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "weights"]


def test_the_environment_names_the_default_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(contract.BUNDLE_ENV, str(bundle.path))
    assert open_bundle().digest == bundle.digest


def test_a_flipped_bit_in_the_manifest_is_noticed_wherever_it_is(bundle: Bundle) -> None:
    manifest = bundle.path / contract.BUNDLE_MANIFEST
    raw = manifest.read_bytes()
    silent = []
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1 << position % 8
        manifest.write_bytes(changed)
        with contextlib.suppress(BundleError):
            silent += [position] if open_bundle(bundle.path).manifest != bundle.manifest else []
    assert silent == []


@pytest.mark.parametrize(("key", "value"), [("temperature", 0), ("temperature", -1.5), ("threshold", 1.01)])
def test_values_that_make_no_sense_are_refused(bundle: Bundle, key: str, value: float) -> None:
    manifest = bundle.path / contract.BUNDLE_MANIFEST
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**text, key: value}))
    with pytest.raises(BundleError, match="expected a temperature above 0, a threshold of 0 to 1"):
        open_bundle(bundle.path)


def test_a_manifest_without_a_seal_is_read(bundle: Bundle) -> None:
    manifest = bundle.path / contract.BUNDLE_MANIFEST
    value = json.loads(manifest.read_text())
    del value["sha256"]
    manifest.write_text(json.dumps(value))
    assert open_bundle(bundle.path).manifest == bundle.manifest
