"""What each way to ask answers, and what it says where something is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, write_bundle
from pneumonia.errors import BundleError, BundleNotFound, DependencyMissing, DeviceUnavailable, ImageError, UsageError
from pneumonia.inference.predictor import open_predictor
from tests.bundles import tiny_bundle, xray
from tests.fake_predictor import FakePredictor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "keras"}, "mode 'keras': not one of onnx, pytorch, triton, tensorrt"),
        ({"mode": "onnx", "device": "tpu"}, "device 'tpu': not one of auto, cpu, cuda"),
        ({"mode": "triton", "protocol": "ftp"}, "protocol 'ftp': not one of http, grpc"),
    ],
)
def test_an_unknown_word_is_answered_with_those_that_exist(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_predictor(**arguments)  # type: ignore[arg-type]


def test_brighter_than_the_threshold_is_pneumonia(bundle: Bundle) -> None:
    answers = open_predictor("onnx", bundle.path).predict([xray(seed) for seed in range(40)])
    assert {answer.label for answer in answers} == set(contract.LABELS)
    for answer in answers:
        assert (answer.label == "PNEUMONIA") == (answer.probability >= answer.threshold)
        assert answer.confidence == pytest.approx(
            answer.probability if answer.label == "PNEUMONIA" else 1 - answer.probability
        )
        assert (answer.threshold, answer.model_id) == (0.4, bundle.model_id)


def test_temperature_threshold_and_preprocessing_are_those_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    image = xray(2)
    (usual,) = open_predictor("onnx", bundle.path).predict([image])
    warm = tiny_bundle(tmp_path / "warm", temperature=5.0, threshold=0.01)
    (other,) = open_predictor("onnx", warm.path).predict([image])
    assert abs(other.probability - 0.5) < abs(usual.probability - 0.5)
    assert (usual.label, other.label) == ("NORMAL", "PNEUMONIA")


@pytest.mark.parametrize("mode", ["onnx", "fake"])
def test_no_images_no_answers(bundle: Bundle, mode: str) -> None:
    predictor = FakePredictor() if mode == "fake" else open_predictor(mode, bundle.path)
    assert predictor.predict([]) == []


def test_a_bad_image_is_named_by_its_place(bundle: Bundle) -> None:
    for predictor in (open_predictor("onnx", bundle.path), FakePredictor()):
        with pytest.raises(ImageError, match="image 1: not an image"):
            predictor.predict([xray(1), b"hello"])


def test_the_fake_says_the_same_for_the_same_bytes() -> None:
    images = [xray(seed) for seed in range(12)]
    answers = FakePredictor().predict(images)
    assert answers == FakePredictor().predict(images)
    assert {answer.label for answer in answers} == set(contract.LABELS)
    assert len({answer.probability for answer in answers}) > 1


def test_without_a_bundle_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    for mode in ("onnx", "pytorch"):
        with pytest.raises(BundleNotFound, match="make demo"):
            open_predictor(mode, tmp_path)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "models")
    with (bundle.path / contract.ONNX_FILE).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx: SHA-256"):
        open_predictor("onnx", bundle.path)


def test_a_graph_that_cannot_be_read_is_named(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(b"not a graph")
    broken = extend_bundle(bundle, tmp_path / "models", {contract.ONNX_FILE: tmp_path / "graph"})
    with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        open_predictor("onnx", broken.path)


def test_a_bundle_without_a_graph_says_how_to_export_it(bundle: Bundle, tmp_path: Path) -> None:
    empty = write_bundle(tmp_path / "models", bundle.manifest, {})
    with pytest.raises(BundleError, match=r"no model\.onnx.*pneumoctl export"):
        open_predictor("onnx", empty.path)


def test_cuda_without_a_cuda_runtime_is_refused(bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(DeviceUnavailable, match=r"CPUExecutionProvider.*--device cpu"):
        open_predictor("onnx", bundle.path, device="cuda")


def test_tensorrt_on_the_cpu_is_refused(bundle: Bundle) -> None:
    with pytest.raises(DeviceUnavailable, match="--mode onnx"):
        open_predictor("tensorrt", bundle.path, device="cpu")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_tensorrt_names_the_missing_package(bundle: Bundle) -> None:
    with pytest.raises(DependencyMissing, match=r"pneumonia\[tensorrt\]"):
        open_predictor("tensorrt", bundle.path)
