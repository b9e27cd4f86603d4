"""A bundle that can be released, made in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, Manifest, write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Mean brightness of each channel, and a linear layer over it, as the graph."""
    pytest.importorskip("onnx", reason="onnx is not installed; pip install 'pneumonia[train]'")
    from onnx import TensorProto, helper, save

    image = helper.make_tensor_value_info(
        contract.TENSOR_INPUT, TensorProto.FLOAT, ["batch", *contract.TENSOR_INPUT_DIMS]
    )
    logits = helper.make_tensor_value_info(contract.TENSOR_OUTPUT, TensorProto.FLOAT, ["batch", len(contract.LABELS)])
    weights = helper.make_tensor("weights", TensorProto.FLOAT, (3, 2), [1, -1, 1, -1, 1, -1])
    nodes = [
        helper.make_node("GlobalAveragePool", [contract.TENSOR_INPUT], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], [contract.TENSOR_OUTPUT]),
    ]
    graph = helper.make_graph(nodes, "brightness", [image], [logits], [weights])
    opset = helper.make_opsetid("", contract.ONNX_OPSET)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=contract.ONNX_IR_VERSION), tmp_path / "graph.onnx")
    manifest = Manifest(name="brightness", temperature=1.5, threshold=0.4, recall_target=0.95)
    return write_bundle(tmp_path / "bundle", manifest, {contract.ONNX_FILE: tmp_path / "graph.onnx"})
