"""Every form of the model that a bundle carries, against the answers of the PyTorch model in its probe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.core.preprocess import Preprocessing, normalize
from pneumonia.data.prepared import load_prepared
from pneumonia.errors import DataError
from pneumonia.export.parity import MAX_PROBABILITY_GAP, Parity, compare, require

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """A file of a bundle that answers. min_agreement: least share of equal labels; max_gap: largest allowed |Δp|."""

    file: str
    answer: Callable[[Bundle, str, Logits], Logits]
    min_agreement: float = 1.0
    max_gap: float = MAX_PROBABILITY_GAP


def onnx_answers(bundle: Bundle, file: str, pixel_values: Logits) -> Logits:
    """pixel_values float32 (B, 3, 224, 224) -> logits float32 (B, 2), by ONNX Runtime on the CPU."""
    from pneumonia.inference.onnx_runtime import open_session

    session = open_session(bundle.file(file), "cpu")
    # An odd batch size, so that a graph with a frozen batch cannot pass.
    parts = [session.run([contract.TENSOR_OUTPUT], {contract.TENSOR_INPUT: pixel_values[start : start + 33]})[0]
             for start in range(0, len(pixel_values), 33)]  # fmt: skip
    return np.concatenate(parts)


def _engine_answers(bundle: Bundle, file: str, pixel_values: Logits) -> Logits:
    from pneumonia.inference.trt_engine import TensorRTPredictor

    return TensorRTPredictor(bundle.path, "cuda").logits(pixel_values)


FORMS = {
    "onnx": Form(contract.ONNX_FILE, onnx_answers),
    # Eight bits are coarse: a single image near the threshold may change sides.
    "int8": Form(contract.INT8_FILE, onnx_answers, min_agreement=0.98, max_gap=1.0),
    "fp16": Form(contract.FP16_FILE, onnx_answers, min_agreement=0.99, max_gap=1e-2),
    "tensorrt": Form(contract.ENGINE_FILE, _engine_answers, min_agreement=0.99, max_gap=1e-2),
}


def check_forms(bundle: Path, prepared: Path) -> dict[str, Parity]:
    """Parity of every form that the bundle has with PyTorch's answers, by name of the form.

    Reference are the logits of probe.json, which PyTorch gave for images of the test split. Raises ParityRefused for
    the first form that disagrees, DataError where the images are not those of `prepared`, DeviceUnavailable for an
    engine without its GPU.
    """
    opened = open_bundle(bundle)
    pixel_values, expected = _probe(opened, prepared)
    manifest = opened.manifest
    parity = {}
    for name, form in FORMS.items():
        if opened.has(form.file):
            answers = form.answer(opened, form.file, pixel_values)
            found = compare(expected, answers, manifest.point)
            parity[name] = require(found, form.file, form.min_agreement, form.max_gap)
            print(f"parity: {form.file} agrees on {found.images} images, largest |Δp| {found.max_gap:.1e}",
                  file=sys.stderr)  # fmt: skip
    return parity


def _probe(bundle: Bundle, prepared: Path) -> tuple[Logits, Logits]:
    """pixel_values (N, 3, 224, 224) of the probe's images and PyTorch's logits (N, 2) for them."""
    data = load_prepared(prepared)
    images = json.loads(bundle.file(contract.PROBE_FILE).read_text("utf-8"))["images"]
    row_of = {digest: row for row, digest in enumerate(data.index["sha256"])}
    try:
        rows = [row_of[image["sha256"]] for image in images]
    except KeyError as error:
        raise DataError(
            f"{prepared}: does not hold the image {error} of the bundle's probe; give the data of the same run"
        ) from error
    spec = Preprocessing.from_json(data.manifest["preprocessing"])
    logits = np.array([image["logits"] for image in images], np.float32)
    return normalize(np.asarray(data.pixels[rows]), spec), logits
