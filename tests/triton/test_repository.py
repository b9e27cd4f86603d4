"""What a model repository holds, for each backend of the tensor model."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle
from pneumonia.errors import BundleError, UsageError
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.repository import ENGINE_FILE, write_repository
from tests.bundles import serving, tiny_bundle, xray


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_the_python_repository_carries_all_it_needs(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path)
    assert files(tmp_path) == {
        f"pneumonia_detection/{name}" for name in ("config.pbtxt", "1/model.py", "1/bundle.json", "1/model.onnx")
    }
    served = tmp_path / contract.ENSEMBLE / "1" / contract.ONNX_FILE
    assert filecmp.cmp(served, bundle.path / contract.ONNX_FILE, shallow=False)


def test_it_is_the_same_wherever_it_is_written_and_names_no_folder_of_this_machine(
    bundle: Bundle, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_repository(bundle, tmp_path / name)
    names = sorted(files(tmp_path / "one"))
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False) == (names, [], [])
    package = importlib.util.find_spec("pneumonia")
    assert package is not None
    assert package.origin is not None
    for folder in (str(tmp_path), str(bundle.path), str(Path(package.origin).parents[1]), sys.prefix):
        assert [name for name in names if folder.encode() in (tmp_path / "one" / name).read_bytes()] == []


def test_a_server_with_onnx_runtime_gets_the_graph_alone(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path, backend="onnxruntime")
    assert {name for name in files(tmp_path) if name.startswith(contract.TENSOR_MODEL)} == {
        "pneumonia_vit/config.pbtxt",
        "pneumonia_vit/1/model.onnx",
    }


def test_tensorrt_serves_the_engine_under_the_name_that_triton_knows(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"an engine")
    with_engine = extend_bundle(bundle, tmp_path / "models", {contract.ENGINE_FILE: tmp_path / "engine"})
    write_repository(with_engine, tmp_path / "repository", backend="tensorrt")
    assert (tmp_path / "repository" / contract.TENSOR_MODEL / "1" / ENGINE_FILE).read_bytes() == b"an engine"


def test_a_bundle_without_what_the_backend_serves_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no model\.engine"):
        write_repository(bundle, tmp_path, backend="tensorrt")
    assert files(tmp_path) == set()


def test_an_unknown_backend_is_named_with_those_that_exist(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'openvino': not one of python, onnxruntime, tensorrt"):
        write_repository(bundle, tmp_path, backend="openvino")


def test_a_release_from_before_an_output_is_served_and_answers_without_it(tmp_path: Path) -> None:
    """As one of the first version is: other code, a manifest of schema 1, configurations that know no `uncertain`."""
    bundle = tiny_bundle(tmp_path / "bundle")
    write_repository(bundle, tmp_path / "older")
    for path in (tmp_path / "older").rglob("*"):
        if path.name == "config.pbtxt":
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if f'"{contract.OUTPUT_UNCERTAIN}"' not in line))
        elif path.name == "model.py":
            path.write_text("raise SystemExit('written for another library')\n")
        elif path.name == contract.BUNDLE_MANIFEST:
            value = json.loads(path.read_text())
            path.write_text(
                json.dumps(
                    {key: item for key, item in value.items() if key not in ("offset", "sure", "sha256")}
                    | {"schema_version": 1}
                )
            )
    images = [xray(seed) for seed in range(3)]
    expected = open_predictor("onnx", bundle.path).predict(images)
    with serving(tmp_path / "older") as server:
        for protocol in contract.PROTOCOLS:
            answers = open_predictor("triton", url=server.address(protocol), protocol=protocol).predict(images)
            assert [item.label for item in answers] == [item.label for item in expected]
            assert not any(item.uncertain for item in answers)
