"""Writes the Triton model repository of a bundle: one Python model, or with a GPU three steps and their ensemble."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.errors import UsageError
from pneumonia.files import write_text

BACKENDS = ("python", "onnxruntime", "tensorrt")
"""Of the tensor model. python runs ONNX Runtime inside Triton's Python backend, for servers without the other two."""
ENGINE_FILE = "model.plan"
"""What Triton's TensorRT backend calls an engine."""
MAX_QUEUE_SIZE = {"python": 64, "onnxruntime": 128, "tensorrt": 128}
"""Requests that may wait at a step; the next one is answered 503 at once instead of growing the delay. On two cores
ViT-base answers ten or twenty a second, so that 64 wait less than QUEUE_TIMEOUT_US."""
QUEUE_TIMEOUT_US = 10_000_000
GPU_QUEUE_DELAY_US = 1_000
"""How long a GPU waits for a batch to fill. A CPU gains too little from larger batches to wait at all."""
GPU_DECODERS = 4
"""Processes that decode images for one GPU; each takes a core."""
INSTANCES = 2
"""Processes that answer on a processor: one decodes while the other computes. Each divides the cores in threads."""

_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}
_MODEL_FILE = "model.py"
_BACKEND = Path(__file__).parent / "backend"
_MODULES = {
    contract.ENSEMBLE: "detection",
    contract.PREPROCESS_MODEL: "preprocess",
    contract.POSTPROCESS_MODEL: "postprocess",
}
"""Models that are Python code, and the file of triton/backend that each runs."""


def write_repository(bundle: Bundle, root: Path, backend: str = "python") -> None:
    """Write <root>/<model>/config.pbtxt and <root>/<model>/1/... of the models that `contract` names.

    backend: what runs the graph, one of BACKENDS. python, for processors, decodes, runs the graph and answers in one
    model; the others are a step between two Python ones, and were not run on a GPU. The repository holds no path of
    this machine, so it can be moved and served anywhere. Raises BundleError where the bundle lacks the file that the
    backend serves.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r}: not one of {', '.join(BACKENDS)}")
    graph = bundle.file(_served_file(bundle, backend))
    manifest = {contract.BUNDLE_MANIFEST: bundle.path / contract.BUNDLE_MANIFEST}
    if backend == "python":
        _write_model(root, contract.ENSEMBLE, _detection_config(), manifest | {contract.ONNX_FILE: graph}, True)
        return
    served = {"tensorrt": ENGINE_FILE}.get(backend, contract.ONNX_FILE)
    _write_model(root, contract.PREPROCESS_MODEL, _preprocess_config(backend), manifest, True)
    _write_model(root, contract.TENSOR_MODEL, _tensor_config(backend), {served: graph}, False)
    _write_model(root, contract.POSTPROCESS_MODEL, _postprocess_config(backend), manifest, True)
    _write_model(root, contract.ENSEMBLE, _ensemble_config(), {}, False)


def manifest_of(repository: Path) -> Path:
    """The bundle's manifest in a repository: of the one model, or of the first step."""
    name, version = contract.BUNDLE_MANIFEST, contract.MODEL_VERSION
    steps = repository / contract.PREPROCESS_MODEL / version / name
    return steps if os.path.lexists(steps) else repository / contract.ENSEMBLE / version / name


def is_current(repository: Path) -> bool:
    """Whether the Python code in a release is this version's."""
    return not _old_code(repository)


def make_current(linked: Path) -> None:
    """Let this version's code run an older release, in a folder of links to it.

    Its own code came with it and calls the library as it was then. The configurations stay: which outputs a release has
    was settled when it was published, and the code gives those.
    """
    for code, current in _old_code(linked):
        code.unlink()
        shutil.copyfile(current, code)


def _old_code(repository: Path) -> list[tuple[Path, Path]]:
    """Files of a release with code that is not this version's, each with the file of this version."""
    found = []
    for name, module in _MODULES.items():
        code, current = repository / name / contract.MODEL_VERSION / _MODEL_FILE, _BACKEND / f"{module}.py"
        if code.is_file() and code.read_bytes() != current.read_bytes():
            found.append((code, current))
    return found


def _served_file(bundle: Bundle, backend: str) -> str:
    """File of the bundle that a backend serves. python runs on a processor, which int8 is made for."""
    if backend == "tensorrt":
        return contract.ENGINE_FILE
    return contract.INT8_FILE if backend == "python" and bundle.has(contract.INT8_FILE) else contract.ONNX_FILE


def _write_model(root: Path, name: str, config: str, files: dict[str, Path], python: bool) -> None:
    """One model folder. python: whether the model is the Python code that _MODULES names."""
    version = root / name / contract.MODEL_VERSION
    version.mkdir(parents=True, exist_ok=True)
    for target, source in files.items():
        shutil.copyfile(source, version / target)
    if python:
        shutil.copyfile(_BACKEND / f"{_MODULES[name]}.py", version / _MODEL_FILE)
    elif not files:
        # Git and object stores forget empty folders, KServe's storage initializer forgets empty files too, and Triton
        # wants the version of an ensemble to exist.
        write_text(version / ".keep", "An ensemble has no files; its version folder has to exist.\n")
    write_text(root / name / "config.pbtxt", config)


def _tensor(kind: str, name: str, datatype: str, dims: tuple[int, ...]) -> str:
    listed = ", ".join(map(str, dims))
    return f'{kind} [ {{ name: "{name}" data_type: {_TYPES[datatype]} dims: [ {listed} ] }} ]\n'


def _outputs() -> str:
    return "".join(_tensor("output", name, datatype, (1,)) for name, datatype in contract.ENSEMBLE_OUTPUTS.items())


_IMAGE = _tensor("input", contract.ENSEMBLE_INPUT, "BYTES", (1,))


def _head(name: str, backend: str | None, platform: str | None = None) -> str:
    engine = f'backend: "{backend}"' if backend else f'platform: "{platform}"'
    return f'name: "{name}"\n{engine}\nmax_batch_size: {contract.MAX_BATCH_SIZE}\n'


def _detection_config() -> str:
    # Each request runs alone: decoding gains nothing from a batch, the first of one would wait for the last, and what
    # an instance holds in shared memory stays within one request's limit.
    batching = _batching("python").replace("{\n", "{\n  preferred_batch_size: [ 1 ]\n", 1)
    return _head(contract.ENSEMBLE, "python") + _IMAGE + _outputs() + batching + _instances(INSTANCES)


def _batching(backend: str, delay_us: int = 0) -> str:
    """Batches what waits, bounds the queue, and refuses what is over."""
    return (
        "dynamic_batching {\n"
        f"  max_queue_delay_microseconds: {delay_us}\n"
        "  default_queue_policy {\n"
        "    timeout_action: REJECT\n"
        f"    default_timeout_microseconds: {QUEUE_TIMEOUT_US}\n"
        f"    max_queue_size: {MAX_QUEUE_SIZE[backend]}\n"
        "  }\n"
        "}\n"
    )


def _instances(count: int = 1, kind: str = "KIND_CPU") -> str:
    return f"instance_group [ {{ count: {count} kind: {kind} }} ]\n"


def _warm_up(*batch_sizes: int) -> str:
    """Batches of zeros before the model counts as ready: the first run allocates memory and chooses kernels."""
    dims = ", ".join(map(str, contract.TENSOR_INPUT_DIMS))
    tensor = f'key: "{contract.TENSOR_INPUT}" value {{ data_type: TYPE_FP32 dims: [ {dims} ] zero_data: true }}'
    return "".join(
        f'model_warmup [ {{ name: "{size}" batch_size: {size} inputs {{ {tensor} }} }} ]\n' for size in batch_sizes
    )


def _preprocess_config(backend: str) -> str:
    output = _tensor("output", contract.TENSOR_INPUT, "FP32", contract.TENSOR_INPUT_DIMS)
    instances = _instances(GPU_DECODERS)
    return _head(contract.PREPROCESS_MODEL, "python") + _IMAGE + output + _batching(backend) + instances


def _tensor_config(backend: str) -> str:
    tensors = _tensor("input", contract.TENSOR_INPUT, "FP32", contract.TENSOR_INPUT_DIMS) + _tensor(
        "output", contract.TENSOR_OUTPUT, "FP32", contract.TENSOR_OUTPUT_DIMS
    )
    how = _batching(backend, GPU_QUEUE_DELAY_US) + _instances(kind="KIND_GPU") + _warm_up(1, contract.MAX_BATCH_SIZE)
    return _head(contract.TENSOR_MODEL, backend) + tensors + how


def _postprocess_config(backend: str) -> str:
    logits = _tensor("input", contract.TENSOR_OUTPUT, "FP32", contract.TENSOR_OUTPUT_DIMS)
    return _head(contract.POSTPROCESS_MODEL, "python") + logits + _outputs() + _batching(backend) + _instances()


def _ensemble_config() -> str:
    def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
        maps = [f'    input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
        maps += [f'    output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
        return "\n".join(["  step {", f'    model_name: "{model}"', "    model_version: -1", *maps, "  }"])

    def same(*names: str) -> dict[str, str]:
        return {name: name for name in names}

    steps = [
        step(contract.PREPROCESS_MODEL, same(contract.ENSEMBLE_INPUT), same(contract.TENSOR_INPUT)),
        step(contract.TENSOR_MODEL, same(contract.TENSOR_INPUT), same(contract.TENSOR_OUTPUT)),
        step(contract.POSTPROCESS_MODEL, same(contract.TENSOR_OUTPUT), same(*contract.ENSEMBLE_OUTPUTS)),
    ]
    scheduling = "\n".join(["ensemble_scheduling {", *steps, "}", ""])
    return _head(contract.ENSEMBLE, None, "ensemble") + _IMAGE + _outputs() + scheduling
