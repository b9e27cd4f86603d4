"""The 8-bit graph for processors: fused attention and GELU, matrix products in int8, and proof that it still agrees."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.config.schema import Config
from pneumonia.core.metrics import point_metrics
from pneumonia.core.prediction import pneumonia_probability
from pneumonia.data.prepare import load_prepared
from pneumonia.errors import DataError, ParityRefused
from pneumonia.export.parity import compare, require
from pneumonia.export.spread import require_both_answers, spread
from pneumonia.export.to_onnx import onnx_logits
from pneumonia.files import check_replaceable
from pneumonia.graph import write_graph

PARITY_IMAGES = 400
MIN_AGREEMENT = 0.995
MAX_AUROC_GAP = 0.002
MAX_PROBABILITY_GAP = 1.0
"""int8 may move a single probability; labels and ranking are what it has to keep."""
_FUSED = "onnx_fused"
_DOMAIN = "com.microsoft"


def export_int8(config: Config, bundle: Path, prepared: Path, out: Path) -> Bundle:
    """Write the bundle at `out`: that at `bundle` with model.int8.onnx, or a plain copy for export.int8=false.

    Weights of matrix products become int8, one scale a column; activations are quantised as they come, so nothing has
    to be calibrated. The graph has ONNX Runtime's own operators (com.microsoft) and runs nowhere else. Raises
    ParityRefused, writing nothing, where labels or AUROC on test images move by more than allowed, DataError where
    `prepared` is another data set than the bundle was trained on.
    """
    check_replaceable(out, contract.BUNDLE_MANIFEST)
    opened, data = open_bundle(bundle), load_prepared(prepared)
    if not config.export.int8:
        return extend_bundle(opened, out, {})
    if opened.manifest.data["digest"] != data.manifest["digest"]:
        raise DataError(f"{bundle} and {prepared} are not of one data digest; use those of one run")
    from pneumonia.architecture import load_model
    from pneumonia.training.dataset import predict_logits

    model = load_model(bundle)
    rows = spread(data, data.indices("test"), PARITY_IMAGES)
    expected = predict_logits(model, data, rows)
    manifest = opened.manifest
    require_both_answers(manifest.point.answers(expected), "test images")
    with tempfile.TemporaryDirectory(prefix="int8.") as temporary:
        graph = Path(temporary) / contract.INT8_FILE
        write_int8_graph(model, graph)
        answers = onnx_logits(graph, data, rows)
        parity = compare(expected, answers, manifest.point)
        require(parity, "INT8", MIN_AGREEMENT, MAX_PROBABILITY_GAP)
        gap = _auroc_gap(data.labels[rows], expected, answers)
        if not gap <= MAX_AUROC_GAP:
            raise ParityRefused(f"INT8 moves AUROC by {gap:.4f}, at most {MAX_AUROC_GAP} is allowed; not exported")
        agreement = f"{parity.label_agreement:.2%} of {parity.images} labels, AUROC within {gap:.4f}"
        print(f"export: INT8 agrees with PyTorch on {agreement}", file=sys.stderr)
        proven = {**manifest.metrics.get("parity", {}), "int8": {**parity.to_json(), "auroc_gap": gap}}
        metrics = {**manifest.metrics, "parity": proven}
        return extend_bundle(opened, out, {contract.INT8_FILE: graph}, metrics=metrics)


def _auroc_gap(labels: Any, expected: Any, answers: Any) -> float:
    found = [point_metrics(labels, pneumonia_probability(logits, 1.0), 0.5)["auroc"] for logits in (expected, answers)]
    return round(abs(found[0] - found[1]), 6)


def write_int8_graph(model: Any, path: Path) -> None:
    """Export `model` with fused operators and quantise its matrix products; same names and shapes as `write_graph`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="fused.") as temporary:
        fused = Path(temporary) / "fused.onnx"
        write_fused_graph(model, fused)

        # It advises a preprocessing step for graphs that, unlike this one, were not exported with shapes.
        def silence(record: logging.LogRecord) -> bool:
            return "pre-process" not in record.getMessage()

        logging.getLogger().addFilter(silence)
        try:
            quantize_dynamic(
                fused,
                path,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                # Seven bits: processors without VNNI add pairs of 8-bit products in 16 bits, which overflow.
                reduce_range=True,
                extra_options={"MatMulConstBOnly": True},
            )
        finally:
            logging.getLogger().removeFilter(silence)


def write_fused_graph(model: Any, path: Path) -> None:
    """As `write_graph`, with attention and GELU as one operator each of ONNX Runtime, float32 throughout."""
    with _fused_operators(model):
        write_graph(model, path, check=False)


@contextlib.contextmanager
def _fused_operators(model: Any) -> Iterator[None]:
    """Inside, tracing `model` meets one symbolic operator for every attention and every GELU."""
    import torch
    from transformers.activations import GELUActivation
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any = None, **_: Any) -> tuple[Any, None]:
        batch, heads, tokens, width = query.shape  # the operator takes (B, tokens, heads * width)
        flat = [item.transpose(1, 2).reshape(batch, tokens, heads * width) for item in (query, key, value)]
        out = torch.onnx.ops.symbolic(
            f"{_DOMAIN}::MultiHeadAttention", flat, {"num_heads": heads},
            dtype=query.dtype, shape=(batch, tokens, heads * width), version=1,
        )  # fmt: skip
        return out.reshape(batch, tokens, heads, width), None

    class FusedGelu(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.onnx.ops.symbolic(
                f"{_DOMAIN}::Gelu", [values], {}, dtype=values.dtype, shape=values.shape, version=1
            )

    ALL_ATTENTION_FUNCTIONS.register(_FUSED, attention)
    usual = model.config._attn_implementation
    # The exact GELU alone: the operator computes no approximation.
    places = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
              if isinstance(child, GELUActivation) and child.act is torch.nn.functional.gelu]  # fmt: skip
    try:
        model.set_attn_implementation(_FUSED)
        for parent, name, _ in places:
            setattr(parent, name, FusedGelu())
        yield
    finally:
        model.set_attn_implementation(usual)
        for parent, name, child in places:
            setattr(parent, name, child)
