"""Latency of ViT-base on a processor: our int8 graph against PyTorch, transformers.pipeline, ONNX Runtime and OpenVINO.

    python benchmarks/latency.py [BUNDLE]

A full-size ViT-base with random weights (speed does not depend on them), batch 1 and 8, every peer in turns in one run,
medians. Then what int8 costs in accuracy: for ViT-base the relative RMS error and cosine of final hidden states and
logits on the same inputs; for BUNDLE (default ./models, a trained local model with its test images' logits in
probe.json) label agreement needs X-rays and is proven at export, where its figures are stored and printed from.
Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _results import machine, write_section

ROUNDS = 7
BATCHES = (1, 8)
MULTIPLICATIONS = 12 * (12 * 197 * 768**2 + 2 * 197**2 * 768) + 196 * 768**2
"""Of ViT-base for one image: each layer's linear maps and its attention, and the patches."""
OURS = "pneumonia int8 (ONNX Runtime)"
PLAIN, EAGER = "ONNX Runtime fp32, plain", "PyTorch eager fp32"


def main() -> None:
    """Time every peer in turns, print medians and ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = vit_base(folder)
        rng = np.random.default_rng(0)
        inputs = {size: rng.standard_normal((size, 3, 224, 224)).astype(np.float32) for size in BATCHES}
        peers = make_peers(folder, model)
        seconds: dict[tuple[str, int], list[float]] = {(name, size): [] for name in peers for size in BATCHES}
        for number in range(ROUNDS + 1):
            for name, run in peers.items():
                for size, batch in inputs.items():
                    began = time.perf_counter()
                    run(batch)
                    if number:  # the first warms up
                        seconds[name, size].append(time.perf_counter() - began)
        medians = {key: statistics.median(values) for key, values in seconds.items()}
        text = "\n\n".join([machine("torch", "transformers", "onnxruntime", "openvino"), table(peers, medians),
                            verdict(peers, medians), bound(medians), accuracy(folder, inputs[8])])  # fmt: skip
    print(text)
    write_section("ViT-base on a processor", text)


def vit_base(folder: Path) -> Any:
    """A ViT-base of two classes with random weights, saved with its three graphs."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from pneumonia.export.to_int8 import write_int8_graph
    from pneumonia.graph import write_graph

    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=2)).eval()
    write_graph(model, folder / "model.onnx")
    write_int8_graph(model, folder / "model.int8.onnx")
    return model


def make_peers(folder: Path, model: Any) -> dict[str, Callable[[Any], Any]]:
    """{name: function of pixel_values float32 (B, 3, 224, 224)}."""
    import openvino
    import torch
    from transformers import ViTImageProcessor, pipeline

    from pneumonia.inference.onnx_runtime import open_session

    def eager(batch: Any, dtype: Any = None) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            return model(pixel_values=torch.from_numpy(batch)).logits

    # The pipeline takes images, so its time holds its own normalisation of 224x224 pixels.
    classify = pipeline("image-classification", model=model, image_processor=ViTImageProcessor(do_resize=False))
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8))

    def openvino_at(precision: str) -> Callable[[Any], Any]:
        core = openvino.Core()
        compiled = core.compile_model(str(folder / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": precision})
        return lambda batch: compiled([batch])[0]

    def session(name: str) -> Callable[[Any], Any]:
        opened = open_session(folder / name, "cpu")
        return lambda batch: opened.run(None, {"pixel_values": batch})[0]

    return {
        EAGER: eager,
        "PyTorch eager bf16": lambda batch: eager(batch, torch.bfloat16),
        "transformers.pipeline": lambda batch: classify([picture] * len(batch), batch_size=len(batch)),
        PLAIN: session("model.onnx"),
        "OpenVINO fp32": openvino_at("f32"),
        "OpenVINO bf16": openvino_at("bf16"),
        OURS: session("model.int8.onnx"),
    }


def table(peers: Any, medians: dict[tuple[str, int], float]) -> str:
    """One row a peer."""
    head = " | ".join(f"batch {size}" for size in BATCHES)
    lines = [f"ms an image, medians of {ROUNDS} rounds; in brackets how many times as long as ours.\n",
             f"| | {head} |", "|---" * (len(BATCHES) + 1) + "|"]  # fmt: skip
    for name in peers:
        cells = [f"{medians[name, size] / size * 1e3:.1f} ({medians[name, size] / medians[OURS, size]:.2f})"
                 for size in BATCHES]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(peers: Any, medians: dict[tuple[str, int], float]) -> str:
    """What was asked for, and whether it was reached."""
    lines = []
    for size in BATCHES:
        ours = medians[OURS, size]
        fastest = min((name for name in peers if name != OURS), key=lambda name: medians[name, size])
        for peer, least in ((PLAIN, 2.5), (EAGER, 5.0), (fastest, 1.0)):
            ratio = medians[peer, size] / ours
            lines.append(f"- Batch {size}, {ratio:.2f} times as fast as {peer}; asked for at least {least}: "
                         f"{'met' if ratio >= least else 'not met'}.")  # fmt: skip
    return "\n".join(lines)


def bound(medians: dict[tuple[str, int], float]) -> str:
    """How far plain float32 and int8 are from what the processor's cores can multiply."""
    import torch

    square = torch.rand(2048, 2048)
    seconds = []
    for number in range(ROUNDS + 1):
        began = time.perf_counter()
        torch.matmul(square, square)
        if number:
            seconds.append(time.perf_counter() - began)
    peak = 2 * 2048**3 / statistics.median(seconds) / 1e9
    plain, ours = (2 * MULTIPLICATIONS * 8 / medians[name, 8] / 1e9 for name in (PLAIN, OURS))
    return (f"What bounds it: arithmetic. An image takes {MULTIPLICATIONS / 1e9:.1f} thousand million "
            f"multiplications and additions. A float32 product of 2048x2048 matrices reaches {peak:.0f} GFLOP/s here; "
            f"plain ONNX Runtime in batches of 8 has {plain / peak:.0%} of that, int8 {ours / peak:.1f} times as much "
            "as that product.")  # fmt: skip


def accuracy(folder: Path, batch: Any) -> str:
    """Relative RMS error and cosine of int8 against fp32, and what the bundle's own export proved."""
    rows = ["int8 against fp32, ViT-base with random weights, 8 random inputs:", "",
            "| | relative RMS error | cosine |", "|---|---|---|"]  # fmt: skip
    outputs = [_with_hidden(folder / name, batch) for name in ("model.onnx", "model.int8.onnx")]
    for index, name in enumerate(("final hidden states", "logits")):
        exact, found = (item[index].reshape(-1).astype(np.float64) for item in outputs)
        error = np.sqrt(((found - exact) ** 2).mean() / (exact**2).mean())
        cosine = exact @ found / np.linalg.norm(exact) / np.linalg.norm(found)
        rows.append(f"| {name} | {error:.4f} | {cosine:.5f} |")
    return "\n".join([*rows, "", _proven(Path(sys.argv[1] if len(sys.argv) > 1 else "models"))])


def _with_hidden(graph: Path, batch: Any) -> list[Any]:
    """[output of the last layer norm, logits] of a graph."""
    import onnx
    import onnxruntime

    proto = onnx.load(graph)
    last = [node for node in proto.graph.node if node.op_type == "LayerNormalization"][-1].output[0]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run([last, "logits"], {"pixel_values": batch}))


def _proven(bundle: Path) -> str:
    from pneumonia.bundle import open_bundle

    proof = open_bundle(bundle).manifest.metrics.get("parity", {}).get("int8") if bundle.is_dir() else None
    if proof is None:
        return f"No trained bundle with model.int8.onnx at {bundle.name}: its label agreement is not in this run."
    return (f"Trained local model, {proof['images']:.0f} test X-rays: label agreement {proof['label_agreement']:.2%} "
            f"(asked for 99.5 %), AUROC within {proof['auroc_gap']:.4f} (asked for .002), largest |Δp| "
            f"{proof['max_gap']:.4f}.")  # fmt: skip


if __name__ == "__main__":
    main()
