"""The final bundle: ONNX graph, proof of parity, test figures and a probe of known answers."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.config.schema import Config
from pneumonia.core.preprocess import Preprocessing, normalize
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.errors import DataError
from pneumonia.evaluation.evaluate import read_metrics_of
from pneumonia.export.parity import compare, require
from pneumonia.export.spread import require_both_answers, spread
from pneumonia.files import check_replaceable, write_json
from pneumonia.graph import write_graph

PARITY_IMAGES = 200


def export_onnx(config: Config, bundle: Path, evaluation: Path, prepared: Path, out: Path) -> Bundle:
    """Write the bundle at `out`: that at `bundle` with model.onnx, probe.json and the test metrics of `evaluation`.

    The graph takes pixel_values float32 (B, 3, 224, 224) and gives logits float32 (B, 2), B from 1 up. Raises
    ParityRefused, writing nothing, where ONNX Runtime and PyTorch disagree on test images, and DataError where the
    evaluation belongs to another bundle or to other data.
    """
    check_replaceable(out, contract.BUNDLE_MANIFEST)
    opened, data = open_bundle(bundle), load_prepared(prepared)
    metrics = read_metrics_of(opened, evaluation)
    if not opened.manifest.data["digest"] == data.manifest["digest"] == metrics["data_digest"]:
        raise DataError(f"{bundle}, {prepared} and {evaluation} are not of one data digest; use those of one run")
    from pneumonia.architecture import load_model
    from pneumonia.training.dataset import predict_logits
    from pneumonia.training.tracking import track_again

    model = load_model(bundle)
    rows = spread(data, data.indices("test"), PARITY_IMAGES)
    expected = predict_logits(model, data, rows)
    answers = opened.manifest.point.answers(expected)
    require_both_answers(answers, "test images")
    with tempfile.TemporaryDirectory(prefix="onnx.") as temporary:
        folder = Path(temporary)
        graph = folder / contract.ONNX_FILE
        write_graph(model, graph)
        manifest = opened.manifest
        parity = compare(expected, onnx_logits(graph, data, rows), manifest.point)
        require(parity, "ONNX")
        print(f"export: ONNX agrees with PyTorch on {parity.images} images, largest |Δp| {parity.max_gap:.1e}",
              file=sys.stderr)  # fmt: skip
        write_json(folder / contract.PROBE_FILE, _probe(data, rows, expected, answers))
        # The evaluation repeats what the manifest says elsewhere; the bundle keeps the figures only.
        figures = {key: metrics[key] for key in ("test", "test_at_half", "confusion", "subgroups", "images")}
        exported = extend_bundle(
            opened,
            out,
            {
                **{name: folder / name for name in (contract.ONNX_FILE, contract.PROBE_FILE)},
                contract.CARD_FILE: evaluation / contract.CARD_FILE,
            },
            metrics={**manifest.metrics, **figures, "parity": {"onnx": parity.to_json()}},
        )
    with track_again(config, manifest.name, opened.digest) as tracker:
        tracker.tag("exported_bundle_digest", exported.digest)
        tracker.keep(exported.path, "bundle")
    return exported


def onnx_logits(graph: Path, data: PreparedData, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits (len(rows), 2) of an ONNX file through ONNX Runtime on the CPU, in the order of `rows`."""
    import onnxruntime

    spec = Preprocessing.from_json(data.manifest["preprocessing"])
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    parts = []
    # An odd batch size, so that a graph with a frozen batch cannot pass.
    for start in range(0, len(rows), 33):
        pixel_values = normalize(np.asarray(data.pixels[rows[start : start + 33]]), spec)
        parts.append(session.run([contract.TENSOR_OUTPUT], {contract.TENSOR_INPUT: pixel_values})[0])
    return np.concatenate(parts)


def _probe(
    data: PreparedData,
    rows: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
    answers: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """SHA-256 and logits of some test images, never pixels: what a served model is compared with."""
    digests = data.index["sha256"]
    chosen = np.searchsorted(rows, spread(data, rows, contract.PROBE_IMAGES, answers))
    return {"images": [{"sha256": str(digests[rows[i]]), "logits": [float(x) for x in logits[i]]} for i in chosen]}
