"""A complete bundle made in a moment, X-ray-like images, and a Triton server of that bundle."""

from __future__ import annotations

import contextlib
import io
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumonia import contract
from pneumonia.bundle import Bundle, Manifest, open_bundle, write_bundle
from pneumonia.cli.demo import free_ports
from pneumonia.triton.server import TritonServer

HAS_SERVER = (sys.platform, platform.machine()) == ("linux", "x86_64")


def tiny_bundle(target: Path, nan_above: float | None = None, **changes: Any) -> Bundle:
    """A bundle whose graph is a linear layer over each channel's mean: brighter than middle grey is PNEUMONIA.

    nan_above: logits are NaN where a channel's mean, in standard deviations, is more. changes: fields of the manifest.
    """
    pytest.importorskip("onnx", reason="onnx is not installed; pip install 'pneumonia[train]'")
    from onnx import TensorProto, helper, save

    image = helper.make_tensor_value_info(
        contract.TENSOR_INPUT, TensorProto.FLOAT, ["batch", *contract.TENSOR_INPUT_DIMS]
    )
    logits = helper.make_tensor_value_info(contract.TENSOR_OUTPUT, TensorProto.FLOAT, ["batch", len(contract.LABELS)])
    weights = helper.make_tensor("weights", TensorProto.FLOAT, (3, 2), [-0.3, 0.3, -0.2, 0.1, 0.1, 0.4])
    nodes = [
        helper.make_node("GlobalAveragePool", [contract.TENSOR_INPUT], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], [contract.TENSOR_OUTPUT]),
    ]
    constants = [weights]
    if nan_above is not None:
        constants.append(helper.make_tensor("limit", TensorProto.FLOAT, [], [nan_above]))
        constants.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
        nodes[2:] = [
            helper.make_node("Sub", ["limit", "flat"], ["below"]),
            helper.make_node("Sqrt", ["below"], ["root"]),
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Add", ["flat", "nothing"], ["sum"]),
            helper.make_node("MatMul", ["sum", "weights"], [contract.TENSOR_OUTPUT]),
        ]
    graph = helper.make_graph(nodes, "brightness", [image], [logits], constants)
    opset = helper.make_opsetid("", contract.ONNX_OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=contract.ONNX_IR_VERSION)
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.parent / f"{target.name}.onnx"
    save(model, file)
    manifest = Manifest(**{"name": "tiny", "temperature": 0.5, "threshold": 0.4, "recall_target": 0.95, **changes})
    return write_bundle(target, manifest, {contract.ONNX_FILE: file})


def xray(seed: int, size: tuple[int, int] | None = None) -> bytes:
    """JPEG bytes of grey noise; brightness and, by default, size depend on the seed."""
    rng = np.random.default_rng(seed)
    width, height = size or (max(64, int(rng.integers(60, 500))), max(64, int(rng.integers(60, 500))))
    noise = rng.normal(rng.uniform(20, 235), 20, (height, width)).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", quality=90)
    return stream.getvalue()


@contextlib.contextmanager
def serving(repository: Path, **options: Any) -> Iterator[TritonServer]:
    """A ready server on free ports; skips where the wheel has none for this machine."""
    if not HAS_SERVER:
        pytest.skip(f"the server's wheel is for Linux x86-64, this is {sys.platform} {platform.machine()}")
    http, grpc, metrics = free_ports(3)
    with TritonServer(repository, http, grpc, metrics, **options) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "models")


@pytest.fixture(scope="session")
def release(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its release, as published."""
    from pneumonia.release.publish import publish

    return publish(open_bundle(bundle.path).path, tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
def server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One server of that release for all tests."""
    with serving(release, log=tmp_path_factory.mktemp("server") / "triton.log") as running:
        yield running
