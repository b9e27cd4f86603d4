"""The 8-bit graph answers as the model it was made from, or is not exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pneumonia import contract
from pneumonia.architecture import load_model
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.config.schema import ModelConfig
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import ParityRefused
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.export import to_int8
from pneumonia.export.to_int8 import export_int8, write_fused_graph, write_int8_graph
from pneumonia.export.to_onnx import export_onnx, onnx_logits
from pneumonia.graph import write_graph
from pneumonia.inference.onnx_runtime import open_session
from pneumonia.inference.predictor import open_predictor
from pneumonia.training.dataset import predict_logits
from pneumonia.training.model import build_model
from pneumonia.triton.repository import write_repository
from tests.bundles import xray
from tests.phantoms import smoke_config

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "patch_size": 32}


@pytest.mark.parametrize("architecture", ["vit", "vit_conv_stem"])
def test_fused_operators_compute_what_the_plain_ones_do(architecture: str, tmp_path: Path) -> None:
    import onnx

    torch.manual_seed(0)
    model = build_model(ModelConfig(architecture=architecture, **SMALL)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    pixel_values = torch.randn(3, *contract.TENSOR_INPUT_DIMS)
    with torch.inference_mode():
        expected = model(pixel_values=pixel_values).logits.numpy()
    write_fused_graph(model, tmp_path / "fused.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert (kinds.count("MultiHeadAttention"), kinds.count("Gelu"), kinds.count("Softmax")) == (2, 2, 0)
    (found,) = open_session(tmp_path / "fused.onnx", "cpu").run(None, {contract.TENSOR_INPUT: pixel_values.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # Exporting leaves the model as it was: the plain graph still comes out, with standard operators alone.
    write_graph(model, tmp_path / "plain.onnx")
    with torch.inference_mode():
        assert np.array_equal(model(pixel_values=pixel_values).logits.numpy(), expected)
    write_int8_graph(model, tmp_path / "int8.onnx")
    int8 = onnx.load(tmp_path / "int8.onnx")
    assert sum(node.op_type == "MatMulInteger" for node in int8.graph.node) >= 12
    (quantised,) = open_session(tmp_path / "int8.onnx", "cpu").run(None, {contract.TENSOR_INPUT: pixel_values.numpy()})
    error = np.sqrt(((quantised - expected) ** 2).mean() / (expected**2).mean())
    assert 0 < error < 0.1


def test_a_bundle_with_int8_is_answered_and_served_with_it(
    trained: Bundle, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model of four steps gives 36 images almost one logit, so that rounding reorders them.
    monkeypatch.setattr(to_int8, "MAX_AUROC_GAP", 0.5)
    monkeypatch.setattr(to_int8, "MIN_AGREEMENT", 0.5)
    config = smoke_config(tmp_path, "export.int8=true")
    evaluate(config, trained.path, prepared.path, tmp_path / "evaluation")
    plain = export_onnx(config, trained.path, tmp_path / "evaluation", prepared.path, tmp_path / "plain")
    bundle = export_int8(config, plain.path, prepared.path, tmp_path / "models")
    assert open_bundle(bundle.path).has(contract.INT8_FILE)
    assert bundle.manifest.metrics["parity"]["int8"]["images"] == len(prepared.indices("test"))
    assert set(bundle.manifest.metrics["parity"]) == {"onnx", "int8"}
    rows = prepared.indices("test")
    exact = predict_logits(load_model(trained.path), prepared, rows)
    assert np.abs(onnx_logits(bundle.path / contract.INT8_FILE, prepared, rows) - exact).max() > 0
    images = [xray(seed) for seed in range(4)]
    answers = {path: open_predictor("onnx", path, "cpu").predict(images) for path in (plain.path, bundle.path)}
    gaps = [abs(a.probability - b.probability) for a, b in zip(*answers.values(), strict=True)]
    assert 0 < max(gaps) < 0.05
    write_repository(bundle, tmp_path / "repository")
    served = tmp_path / "repository" / contract.ENSEMBLE / contract.MODEL_VERSION / contract.ONNX_FILE
    assert served.read_bytes() == (bundle.path / contract.INT8_FILE).read_bytes()


def test_without_the_setting_the_bundle_is_copied_as_it_is(
    trained: Bundle, prepared: PreparedData, tmp_path: Path
) -> None:
    copy = export_int8(smoke_config(tmp_path), trained.path, prepared.path, tmp_path / "copy")
    assert (copy.digest, copy.has(contract.INT8_FILE)) == (trained.digest, False)


def test_a_graph_that_answers_differently_is_refused(
    trained: Bundle, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inverted(model: torch.nn.Module, path: Path) -> None:
        model.classifier.weight.data.neg_()
        model.classifier.bias.data.neg_()
        write_int8_graph(model, path)

    monkeypatch.setattr(to_int8, "write_int8_graph", inverted)
    with pytest.raises(ParityRefused, match="INT8"):
        export_int8(smoke_config(tmp_path, "export.int8=true"), trained.path, prepared.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()
