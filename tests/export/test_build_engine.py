"""The float16 graph answers as the float32 one does, on the CPU; an engine is refused where it cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.core.prediction import pneumonia_probability
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import DataError, DependencyMissing, DeviceUnavailable, ParityRefused
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.export import build_engine as engine
from pneumonia.export.forms import check_forms
from pneumonia.export.to_onnx import export_onnx
from pneumonia.inference.trt_engine import require_machine
from tests.phantoms import smoke_config


@pytest.fixture(scope="module")
def exported(trained: Bundle, prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with model.onnx and a probe."""
    folder = Path(tmp_path_factory.mktemp("engine"))
    config = smoke_config(folder)
    evaluate(config, trained.path, prepared.path, folder / "evaluation")
    made = export_onnx(config, trained.path, folder / "evaluation", prepared.path, folder / "models")
    return undecided_between_images(made, folder / "decided")


def undecided_between_images(bundle: Bundle, target: Path) -> Bundle:
    """The bundle with its threshold in the widest gap of its probe's probabilities.

    A model trained for seconds gives all images nearly the same probability, and a threshold among them says nothing
    about a graph whose answers differ in the fifth digit.
    """
    probe = json.loads(bundle.file(contract.PROBE_FILE).read_text("utf-8"))["images"]
    logits = np.array([entry["logits"] for entry in probe])
    ordered = np.sort(pneumonia_probability(logits, bundle.manifest.temperature))
    widest = int(np.argmax(np.diff(ordered)))
    return extend_bundle(bundle, target, {}, threshold=float(ordered[widest : widest + 2].mean()))


@pytest.fixture(scope="module")
def halved(exported: Bundle, prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with model.fp16.onnx."""
    return engine.add_fp16_graph(exported, prepared.path, Path(tmp_path_factory.mktemp("fp16")) / "models")


def test_the_graph_computes_in_float16_between_float32_input_and_output(halved: Bundle) -> None:
    session = onnxruntime.InferenceSession(halved.file(contract.FP16_FILE))
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type) == (contract.TENSOR_INPUT, "tensor(float)")
    assert (given.name, given.type) == (contract.TENSOR_OUTPUT, "tensor(float)")
    for batch in (1, 3, contract.MAX_BATCH_SIZE):
        pixel_values = np.zeros((batch, *contract.TENSOR_INPUT_DIMS), np.float32)
        assert session.run(None, {contract.TENSOR_INPUT: pixel_values})[0].shape == (batch, 2)
    graph = onnx.load(halved.file(contract.FP16_FILE))
    weights = {item.name: item.data_type for item in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            kinds = {weights[name] for name in node.input if name in weights}
            assert kinds <= {onnx.TensorProto.FLOAT16}, node.name
    assert graph.opset_import[0].version == contract.ONNX_OPSET
    assert halved.file(contract.FP16_FILE).stat().st_size < 0.7 * halved.file(contract.ONNX_FILE).stat().st_size


def test_parity_is_proven_and_recorded(exported: Bundle, halved: Bundle, prepared: PreparedData) -> None:
    parity = open_bundle(halved.path).manifest.metrics["parity"]
    assert parity["fp16"]["label_agreement"] >= 0.99
    assert 0 < parity["fp16"]["max_gap"] < 1e-2
    assert parity["onnx"] == exported.manifest.metrics["parity"]["onnx"]
    assert set(check_forms(halved.path, prepared.path)) == {"onnx", "fp16"}


def test_a_graph_that_answers_otherwise_is_refused_and_nothing_is_written(
    exported: Bundle, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(source: Path, target: Path) -> None:
        write(source, target)
        graph = onnx.load(target)
        bias = next(item for item in graph.graph.initializer if item.name.endswith("classifier.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float16([1, -1]), bias.name))
        onnx.save(graph, target)

    write = engine.write_fp16_graph
    monkeypatch.setattr(engine, "write_fp16_graph", shifted)
    with pytest.raises(ParityRefused, match=r"model\.fp16\.onnx disagrees"):
        engine.add_fp16_graph(exported, prepared.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_form_that_disagrees_with_the_probe_is_named(halved: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    graph = onnx.load(halved.file(contract.FP16_FILE))
    for item in graph.graph.initializer:
        if item.name.endswith("classifier.bias"):
            values = onnx.numpy_helper.to_array(item) + np.float16([2, -2])
            item.CopyFrom(onnx.numpy_helper.from_array(values, item.name))
    onnx.save(graph, tmp_path / "broken.onnx")
    broken = extend_bundle(halved, tmp_path / "models", {contract.FP16_FILE: tmp_path / "broken.onnx"})
    with pytest.raises(ParityRefused, match=r"model\.fp16\.onnx"):
        check_forms(broken.path, prepared.path)


def test_other_data_is_refused(exported: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    other = extend_bundle(exported, tmp_path / "other", {}, data={**exported.manifest.data, "digest": "f" * 64})
    with pytest.raises(DataError, match="not of one data digest"):
        engine.add_fp16_graph(other, prepared.path, tmp_path / "models")


def test_without_tensorrt_or_a_gpu_nothing_is_built(exported: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises((DependencyMissing, DeviceUnavailable), match="building an engine"):
        engine.build_engine(smoke_config(tmp_path), exported.path, prepared.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_an_engine_of_another_machine_is_refused_with_both_named() -> None:
    built = {"tensorrt": "10.13.3.9", "gpu": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0"}
    require_machine(Path("model.engine"), built, dict(built))
    for name, other in (("tensorrt", "11.0.0"), ("gpu", "NVIDIA L4"), ("compute_capability", "8.9")):
        with pytest.raises(DeviceUnavailable) as caught:
            require_machine(Path("model.engine"), built, {**built, name: other})
        assert f"built for tensorrt 10.13.3.9, gpu {built['gpu']}, compute_capability 8.0" in str(caught.value)
        assert f"{name} {other}" in str(caught.value).partition("here is")[2]


@pytest.mark.slow
def test_float16_agrees_on_real_xrays(trained: Bundle, xrays: Path, tmp_path: Path) -> None:
    """On 5 % of the real X-rays' patients: drawn images have neither their contrast nor their borders."""
    from pneumonia.data.prepare import prepare
    from pneumonia.data.sources import fetch
    from pneumonia.training.train import train

    config = smoke_config(
        tmp_path,
        "data=folder",
        f"data.root={xrays}",
        "data.fraction=0.05",
        "evaluation.recall_target=0.5",
        "training.max_steps=60",
        "training.num_train_epochs=4",
    )
    prepared = prepare(config, fetch(config.data, tmp_path / "raw"), tmp_path / "prepared").path
    bundle = train(config, prepared, tmp_path / "run" / "bundle")
    evaluate(config, bundle.path, prepared, tmp_path / "evaluation")
    exported = export_onnx(config, bundle.path, tmp_path / "evaluation", prepared, tmp_path / "models")
    exported = undecided_between_images(exported, tmp_path / "decided")
    halved = engine.add_fp16_graph(exported, prepared, tmp_path / "models")
    assert halved.manifest.metrics["parity"]["fp16"]["max_gap"] < 1e-2
