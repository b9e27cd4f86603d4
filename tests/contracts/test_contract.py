"""One contract: the names in code, the written configuration, the graph, a live server and the documents agree."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle
from pneumonia.triton.repository import BACKENDS, MAX_QUEUE_SIZE, write_repository
from pneumonia.triton.server import TritonServer
from tests.bundles import xray

DOCUMENTS = ("README.md", "docs/serving.md")
PYTHON_STEPS = (contract.PREPROCESS_MODEL, contract.POSTPROCESS_MODEL)
IMAGE = {contract.ENSEMBLE_INPUT: ("BYTES", [1])}
PIXELS = {contract.TENSOR_INPUT: ("FP32", [3, 224, 224])}
LOGITS = {contract.TENSOR_OUTPUT: ("FP32", [2])}
ANSWER = {name: (datatype, [1]) for name, datatype in contract.ENSEMBLE_OUTPUTS.items()}
TENSORS = {
    contract.PREPROCESS_MODEL: (IMAGE, PIXELS),
    contract.TENSOR_MODEL: (PIXELS, LOGITS),
    contract.POSTPROCESS_MODEL: (LOGITS, ANSWER),
    contract.ENSEMBLE: (IMAGE, ANSWER),
}
"""Of the servers with a GPU. On a processor one model does all three steps under the public name."""


def parse(config: Path) -> Any:
    """config.pbtxt through Triton's own schema, which refuses an unknown field."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(config.read_text("utf-8"), model_config_pb2.ModelConfig())


def described(tensors: Iterable[Any]) -> dict[str, tuple[str, list[int]]]:
    from tritonclient.grpc import model_config_pb2

    types = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}
    names = {getattr(model_config_pb2, value): name for name, value in types.items()}
    return {tensor.name: (names[tensor.data_type], list(tensor.dims)) for tensor in tensors}


def curl_lines(text: str) -> list[str]:
    """Commands with curl between the markers."""
    parts = re.findall(r"<!-- curl:begin -->(.*?)<!-- curl:end -->", text, re.DOTALL)
    return [line for part in parts for line in part.splitlines() if re.search(r"\bcurl\s", line)]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def test_the_public_names_and_labels_are_what_clients_were_promised() -> None:
    assert contract.ENSEMBLE == "pneumonia_detection"
    assert contract.ENSEMBLE_INPUT == "image"
    assert set(contract.ENSEMBLE_OUTPUTS) == {
        "prediction",
        "confidence",
        "probability",
        "threshold",
        "uncertain",
        "model_id",
    }
    assert contract.LABELS == ("NORMAL", "PNEUMONIA")


@pytest.mark.parametrize("backend", BACKENDS)
def test_written_configurations(bundle: Bundle, tmp_path: Path, backend: str) -> None:
    (tmp_path / "engine").write_bytes(b"an engine")
    with_engine = extend_bundle(bundle, tmp_path / "models", {contract.ENGINE_FILE: tmp_path / "engine"})
    write_repository(with_engine, tmp_path / "repository", backend)
    configs = {path.parent.name: parse(path) for path in (tmp_path / "repository").glob("*/config.pbtxt")}
    on_processor = backend == "python"
    assert set(configs) == ({contract.ENSEMBLE} if on_processor else set(TENSORS))
    for name, config in configs.items():
        assert config.name == name
        assert config.max_batch_size == contract.MAX_BATCH_SIZE
        assert (described(config.input), described(config.output)) == TENSORS[name]
        # An ensemble has no queue of its own; each step's is bounded, and what is over is refused.
        ensemble = name == contract.ENSEMBLE and not on_processor
        policy = config.dynamic_batching.default_queue_policy
        assert config.HasField("dynamic_batching") != ensemble
        assert policy.max_queue_size == (0 if ensemble else MAX_QUEUE_SIZE[backend])
        assert policy.timeout_action == policy.REJECT
    if on_processor:
        assert configs[contract.ENSEMBLE].backend == "python"
        assert configs[contract.ENSEMBLE].instance_group[0].count == 2
        return
    assert configs[contract.TENSOR_MODEL].backend == backend
    assert [configs[name].backend for name in PYTHON_STEPS] == ["python", "python"]
    # The first run of a graph is slow: it happens before the model counts as ready.
    assert configs[contract.TENSOR_MODEL].model_warmup[0].batch_size == 1
    group = configs[contract.TENSOR_MODEL].instance_group[0]
    assert (group.count, group.kind) == (1, group.KIND_GPU)


def test_the_ensemble_is_one_line_of_steps(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path, "onnxruntime")
    config = parse(tmp_path / contract.ENSEMBLE / "config.pbtxt")
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == [
        contract.PREPROCESS_MODEL, contract.TENSOR_MODEL, contract.POSTPROCESS_MODEL
    ]  # fmt: skip
    available = {contract.ENSEMBLE_INPUT}
    for step in steps:
        inputs, outputs = TENSORS[step.model_name]
        assert set(step.input_map) == set(inputs)
        assert set(step.output_map) == set(outputs)
        assert set(step.input_map.values()) <= available
        available = set(step.output_map.values())
    assert available == set(contract.ENSEMBLE_OUTPUTS)


def test_the_graph_in_the_release(release: Path) -> None:
    import onnxruntime

    graph = release / contract.ENSEMBLE / contract.MODEL_VERSION / contract.ONNX_FILE
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    (pixels,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == (contract.TENSOR_INPUT, "tensor(float)", [3, 224, 224])
    assert (logits.name, logits.type, logits.shape[1:]) == (contract.TENSOR_OUTPUT, "tensor(float)", [2])
    assert isinstance(pixels.shape[0], str), "the batch is not dynamic"


def test_metadata_of_the_live_server(server: TritonServer) -> None:
    name = contract.ENSEMBLE
    metadata = get(f"{server.http_url}/v2/models/{name}")
    found = [
        {item["name"]: (item["datatype"], item["shape"][1:]) for item in metadata[kind]}
        for kind in ("inputs", "outputs")
    ]
    assert tuple(found) == TENSORS[name]
    assert {item["shape"][0] for kind in ("inputs", "outputs") for item in metadata[kind]} == {-1}
    assert metadata["versions"] == [contract.MODEL_VERSION]


def test_the_documented_metadata_is_that_of_the_live_server(server: TritonServer, root: Path) -> None:
    text = (root / "docs" / "serving.md").read_text("utf-8")
    documented = next(
        value for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if "inputs" in (value := json.loads(block))
    )
    live = get(f"{server.http_url}/v2/models/{contract.ENSEMBLE}")

    def by_name(value: dict[str, Any]) -> dict[str, Any]:
        return value | {"outputs": sorted(value["outputs"], key=lambda item: item["name"])}

    assert by_name(live) == by_name(documented)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_documented_curl_line_works(server: TritonServer, root: Path, tmp_path: Path, name: str) -> None:
    lines = curl_lines((root / name).read_text("utf-8"))
    infer = [line for line in lines if f"/v2/models/{contract.ENSEMBLE}/infer" in line]
    assert infer, f"{name}: no inference among {lines}"
    (tmp_path / "xray.jpeg").write_bytes(xray(1))
    ports = {str(port): str(server.ports[key]) for key, port in (
        ("http", contract.HTTP_PORT), ("grpc", contract.GRPC_PORT), ("metrics", contract.METRICS_PORT)
    )}  # fmt: skip
    for line in lines:
        command = re.sub(r"localhost:(\d+)", lambda match: f"localhost:{ports[match[1]]}", line)
        # --fail makes curl say so where the server answers with an error.
        command = re.sub(r"\bcurl\s", "curl --fail ", command)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=60)
        assert done.returncode == 0, f"{line}\n{done.stderr!r}"
        if line in infer:
            assert b"PNEUMONIA" in done.stdout or b"NORMAL" in done.stdout, line
            assert b'"model_id"' in done.stdout


def test_the_curl_lines_of_the_readme_are_among_those_of_the_guide(root: Path) -> None:
    readme, guide = (set(curl_lines((root / name).read_text("utf-8"))) for name in DOCUMENTS)
    assert readme
    assert readme <= guide
