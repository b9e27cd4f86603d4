"""A TensorRT engine from the bundle's float16 graph, for the GPU it is built on. The engine: not run on a GPU."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.config.schema import Config
from pneumonia.core.preprocess import Preprocessing, normalize
from pneumonia.data.prepared import load_prepared
from pneumonia.errors import BundleError, DataError
from pneumonia.export.forms import FORMS, Logits
from pneumonia.export.parity import Parity, compare, require
from pneumonia.export.spread import require_both_answers, spread
from pneumonia.files import check_replaceable, write_bytes

PARITY_IMAGES = 200
USUAL_BATCH = 8
"""The batch that TensorRT chooses its kernels for; it takes 1 to MAX_BATCH_SIZE."""
WORKSPACE_BYTES = 4 << 30
IN_FLOAT32 = ("LayerNormalization", "Softmax", "ReduceMean", "Sqrt", "Div", "Pow", "GlobalAveragePool", "AveragePool")
"""Sums over many values and quotients of small ones, which 10 bits of mantissa would spoil."""


def build_engine(config: Config, bundle: Path, prepared: Path, out: Path, timing_cache: Path | None = None) -> Bundle:
    """Write the bundle `out`: that at `bundle` with model.fp16.onnx and model.engine, built on this machine's GPU.

    Both have to answer as model.onnx does on test images of `prepared`. versions gets `tensorrt`, `gpu` and
    `compute_capability`, without which no other machine may load the engine. timing_cache: file that spares the next
    build its measurements; made where there is none. Raises DependencyMissing and DeviceUnavailable without TensorRT
    or a GPU, ParityRefused, writing nothing, where a form disagrees, BundleError where the graph cannot be built.
    """
    from pneumonia.inference.trt_engine import load_libraries, machine

    check_replaceable(out, contract.BUNDLE_MANIFEST)
    tensorrt, torch = load_libraries("building an engine")
    opened = open_bundle(bundle)
    with tempfile.TemporaryDirectory(prefix="tensorrt.") as temporary:
        folder = Path(temporary)
        halved = add_fp16_graph(opened, prepared, folder / "fp16")
        plan = folder / contract.ENGINE_FILE
        plan.write_bytes(_build(tensorrt, halved.file(contract.FP16_FILE), timing_cache))
        versions = {**opened.manifest.versions, **machine(tensorrt, torch)}
        built = extend_bundle(halved, folder / "built", {contract.ENGINE_FILE: plan}, versions=versions)
        parity = agreement("tensorrt", built, prepared)
        return extend_bundle(built, out, {}, metrics=with_parity(built, "tensorrt", parity))


def add_fp16_graph(bundle: Bundle, prepared: Path, out: Path) -> Bundle:
    """Write the bundle `out`: `bundle` with model.fp16.onnx, proven on the CPU. Raises ParityRefused, DataError."""
    with tempfile.TemporaryDirectory(prefix="fp16.") as temporary:
        graph = Path(temporary) / contract.FP16_FILE
        write_fp16_graph(bundle.file(contract.ONNX_FILE), graph)
        halved = extend_bundle(bundle, Path(temporary) / "bundle", {contract.FP16_FILE: graph})
        parity = agreement("fp16", halved, prepared)
        return extend_bundle(halved, out, {}, metrics=with_parity(halved, "fp16", parity))


def write_fp16_graph(source: Path, target: Path) -> None:
    """The ONNX graph at `source` computing in float16, its input, output and the operators of IN_FLOAT32 in float32.

    A strongly typed engine takes every precision from this graph, so what runs on a GPU is decided here.
    """
    import onnx
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        # Weights below the smallest float16 are cut to it, one warning each.
        warnings.simplefilter("ignore")
        model = float16.convert_float_to_float16(
            onnx.load(source), keep_io_types=True, op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *IN_FLOAT32]
        )
    # The converter appends its casts at the end of the list of nodes.
    OnnxModel(model).topological_sort()
    onnx.checker.check_model(model)
    onnx.save(model, target)


def agreement(form: str, bundle: Bundle, prepared: Path) -> Parity:
    """Parity of a form of `bundle` with its model.onnx on test images of `prepared`.

    Raises ParityRefused, DataError.
    """
    data, manifest = load_prepared(prepared), bundle.manifest
    if manifest.data["digest"] != data.manifest["digest"]:
        raise DataError(f"{bundle.path} and {prepared} are not of one data digest; use those of one run")
    rows = spread(data, data.indices("test"), PARITY_IMAGES)
    spec = Preprocessing.from_json(data.manifest["preprocessing"])
    pixel_values: Logits = normalize(np.asarray(data.pixels[rows]), spec)
    expected, found = (FORMS[name].answer(bundle, FORMS[name].file, pixel_values) for name in ("onnx", form))
    require_both_answers(manifest.point.answers(expected), "test images")
    parity = compare(expected, found, manifest.point)
    limits = FORMS[form]
    require(parity, limits.file, limits.min_agreement, limits.max_gap)
    print(f"export: {limits.file} agrees with {contract.ONNX_FILE} on {parity.label_agreement:.2%} of {parity.images} "
          f"images, largest |Δp| {parity.max_gap:.1e}", file=sys.stderr)  # fmt: skip
    return parity


def with_parity(bundle: Bundle, form: str, parity: Parity) -> dict[str, Any]:
    """The bundle's metrics with those of one more form."""
    metrics = bundle.manifest.metrics
    return {**metrics, "parity": {**metrics.get("parity", {}), form: parity.to_json()}}


def _build(tensorrt: Any, graph: Path, timing_cache: Path | None) -> bytes:
    """The serialised engine, strongly typed, for batches of 1 to MAX_BATCH_SIZE.

    Written against the bindings of TensorRT 10.13, and 11, which has no other networks than strongly typed ones.
    Raises BundleError with what TensorRT says.
    """
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise BundleError(f"{graph.name}: TensorRT {tensorrt.__version__} cannot read it ({errors}); export it again")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    shapes = [(batch, *contract.TENSOR_INPUT_DIMS) for batch in (1, USUAL_BATCH, contract.MAX_BATCH_SIZE)]
    profile.set_shape(contract.TENSOR_INPUT, *shapes)
    config.add_optimization_profile(profile)
    stored = b""
    if timing_cache is not None:
        with contextlib.suppress(FileNotFoundError):
            stored = timing_cache.read_bytes()
        # A cache of another GPU or release is refused by TensorRT itself, which then measures anew.
        if not config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    print("export: TensorRT is choosing kernels, which takes minutes the first time", file=sys.stderr, flush=True)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleError(f"{graph.name}: TensorRT {tensorrt.__version__} built no engine; its own log above says why")
    if timing_cache is not None:
        write_bytes(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)
