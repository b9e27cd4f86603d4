"""The exported graph keeps the tensor contract and the model's answers, or is not exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pneumonia import contract
from pneumonia.architecture import load_model
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.core.prediction import OperatingPoint
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import BundleError, DataError, ParityRefused
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.export import to_onnx
from pneumonia.export.parity import compare, require
from pneumonia.export.to_onnx import export_onnx
from pneumonia.inference.predictor import open_predictor
from pneumonia.training.dataset import predict_logits
from tests.faults.children import pneumoctl
from tests.phantoms import smoke_config


@pytest.fixture(scope="module")
def folder(trained: Bundle, prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("export"))
    evaluate(smoke_config(folder), trained.path, prepared.path, folder / "evaluation")
    return folder


@pytest.fixture(scope="module")
def exported(trained: Bundle, prepared: PreparedData, folder: Path) -> Bundle:
    return export_onnx(smoke_config(folder), trained.path, folder / "evaluation", prepared.path, folder / "models")


def test_the_graph_has_the_names_types_and_free_batch_of_the_contract(exported: Bundle) -> None:
    graph = onnx.load(exported.file(contract.ONNX_FILE))
    assert graph.ir_version == contract.ONNX_IR_VERSION
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == contract.ONNX_OPSET
    session = onnxruntime.InferenceSession(exported.file(contract.ONNX_FILE))
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, tuple(taken.shape[1:])) == (
        contract.TENSOR_INPUT, "tensor(float)", contract.TENSOR_INPUT_DIMS,
    )  # fmt: skip
    assert (given.name, given.type, given.shape[1]) == (contract.TENSOR_OUTPUT, "tensor(float)", 2)
    for batch in (1, 3, contract.MAX_BATCH_SIZE):
        pixel_values = np.zeros((batch, *contract.TENSOR_INPUT_DIMS), np.float32)
        assert session.run(None, {contract.TENSOR_INPUT: pixel_values})[0].shape == (batch, 2)


def test_the_graph_names_no_file_of_the_machine_it_was_made_on(exported: Bundle) -> None:
    raw = exported.file(contract.ONNX_FILE).read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in raw
    assert b"site-packages" not in raw


def test_the_final_bundle_carries_test_figures_parity_and_a_probe_without_pixels(
    exported: Bundle, trained: Bundle, prepared: PreparedData
) -> None:
    manifest = open_bundle(exported.path).manifest
    assert manifest.metrics["parity"]["onnx"]["label_agreement"] == 1.0
    assert manifest.metrics["parity"]["onnx"]["max_gap"] < 1e-3
    assert "interval" not in manifest.metrics["test"]
    assert manifest.metrics["val"] == trained.manifest.metrics["val"]
    assert (manifest.temperature, manifest.threshold) == (trained.manifest.temperature, trained.manifest.threshold)
    probe = json.loads(exported.file(contract.PROBE_FILE).read_text())["images"]
    row_of = {digest: row for row, digest in enumerate(prepared.index["sha256"])}
    rows = np.array([row_of[entry["sha256"]] for entry in probe])
    assert set(rows) <= set(prepared.indices("test"))
    assert set(prepared.labels[rows]) == {0, 1}
    logits = predict_logits(load_model(trained.path), prepared, rows)
    assert np.abs(np.array([entry["logits"] for entry in probe]) - logits).max() < 1e-5
    assert all(set(entry) == {"sha256", "logits"} for entry in probe)


def test_pytorch_and_onnx_answer_image_files_alike(exported: Bundle, prepared: PreparedData) -> None:
    raw = prepared.path.parent / "raw"
    images = [(raw / prepared.index["path"][row]).read_bytes() for row in prepared.indices("test")]
    torch_answers = open_predictor("pytorch", exported.path, "cpu").predict(images)
    onnx_answers = open_predictor("onnx", exported.path, "cpu").predict(images)
    assert [answer.label for answer in torch_answers] == [answer.label for answer in onnx_answers]
    assert max(abs(a.confidence - b.confidence) for a, b in zip(torch_answers, onnx_answers, strict=True)) < 1e-3


def test_a_graph_that_answers_otherwise_is_refused_and_nothing_is_written(
    trained: Bundle, prepared: PreparedData, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_model(model: object, path: Path) -> None:
        import torch

        with torch.no_grad():
            model.classifier.bias.add_(torch.tensor([1.0, -1.0]))  # type: ignore[attr-defined]
        write_graph(model, path)

    from pneumonia.graph import write_graph

    monkeypatch.setattr(to_onnx, "write_graph", another_model)
    with pytest.raises(ParityRefused, match="ONNX disagrees with the PyTorch model"):
        export_onnx(smoke_config(tmp_path), trained.path, folder / "evaluation", prepared.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_parts_of_two_runs_are_not_mixed(trained: Bundle, prepared: PreparedData, folder: Path, tmp_path: Path) -> None:
    other = extend_bundle(trained, tmp_path / "bundle", {}, data={**trained.manifest.data, "digest": "f" * 64})
    evaluation = tmp_path / "evaluation"
    shutil.copytree(folder / "evaluation", evaluation)
    metrics = json.loads((evaluation / contract.METRICS_FILE).read_text())
    (evaluation / contract.METRICS_FILE).write_text(json.dumps({**metrics, "bundle_digest": other.digest}))
    with pytest.raises(DataError, match="not of one data digest"):
        export_onnx(smoke_config(tmp_path), other.path, evaluation, prepared.path, tmp_path / "models")


def test_the_figures_of_another_bundle_of_the_same_data_are_refused(
    trained: Bundle, prepared: PreparedData, folder: Path, tmp_path: Path
) -> None:
    other = extend_bundle(trained, tmp_path / "bundle", {}, threshold=0.77)
    with pytest.raises(DataError, match=f"not {other.path} .*run `pneumoctl evaluate` for it"):
        export_onnx(smoke_config(tmp_path), other.path, folder / "evaluation", prepared.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()
    # The command says so before the gate speaks of figures that are another's.
    words = ["export", "gate.accuracy=1.0", "--bundle", other.path, "--evaluation", folder / "evaluation"]
    words += ["--prepared", prepared.path, "--output", tmp_path / "models"]
    pneumoctl(tmp_path, *words).fails(3, "run `pneumoctl evaluate` for it")


def test_a_bundle_without_a_graph_names_the_command_that_makes_one(trained: Bundle) -> None:
    with pytest.raises(BundleError, match="pneumoctl export"):
        open_predictor("onnx", trained.path)


@pytest.mark.parametrize("bad", [np.nan, 0.5])
def test_parity_refuses_what_differs_and_what_is_not_a_number(bad: float) -> None:
    logits = np.zeros((4, 2), np.float32)
    other = logits.copy()
    other[2, 1] = bad
    with pytest.raises(ParityRefused):
        require(compare(logits, other, OperatingPoint(1.0, 0.9)), "form")
    assert require(compare(logits, logits.copy(), OperatingPoint(1.0, 0.9)), "form").max_gap == 0
