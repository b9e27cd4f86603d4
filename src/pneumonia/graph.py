"""A PyTorch model as one ONNX file of the contract's form; beside architecture, so that training can try it first."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.errors import ParityRefused


def write_graph(model: Any, path: Path, check: bool = True) -> None:
    """Export `model` to one ONNX file with a dynamic batch, the contract's names, opset and IR version.

    check: whether every operator has to be a standard one.
    """
    import onnx
    import torch

    class LogitsOnly(torch.nn.Module):
        """The tensor contract: one input, one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return self.model(pixel_values=pixel_values).logits

    example = torch.zeros(2, *contract.TENSOR_INPUT_DIMS)
    # The exporter reports its stages on stdout, which carries results only, and warns of optional optimisations.
    # With gradients some architectures (Swin) have views that no graph can hold.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            LogitsOnly().eval(),
            (example,),
            dynamo=True,
            input_names=[contract.TENSOR_INPUT],
            output_names=[contract.TENSOR_OUTPUT],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            opset_version=contract.ONNX_OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    proto.ir_version = contract.ONNX_IR_VERSION
    # Exporter metadata names source files of the machine it ran on; nothing reads it.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets.get("", contract.ONNX_OPSET) != contract.ONNX_OPSET:
        raise ParityRefused(f"ONNX opset {opsets['']} was exported, {contract.ONNX_OPSET} is what servers are promised")
    if check:
        onnx.checker.check_model(proto)
    onnx.save(proto, path)
