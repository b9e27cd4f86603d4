"""Triton model: logits to the answer, with the bundle's temperature and threshold."""

from __future__ import annotations

import os
import sys

# Triton's stub looks for packages in the base interpreter, whatever virtual environment the server was started from.
# A numpy of another major version there makes every output empty, so ours has to come before numpy is imported.
for _folder in reversed(os.environ.get("PNEUMONIA_SITE_PACKAGES", "").split(os.pathsep)):
    if _folder:
        sys.path.insert(0, _folder)

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

from pneumonia import contract  # noqa: E402
from pneumonia.bundle import Manifest, manifest_model_id  # noqa: E402
from pneumonia.core.prediction import Prediction, predictions  # noqa: E402

_COLUMNS = {
    contract.OUTPUT_PREDICTION: lambda answer: answer.label.encode(),
    contract.OUTPUT_CONFIDENCE: lambda answer: answer.confidence,
    contract.OUTPUT_PROBABILITY: lambda answer: answer.probability,
    contract.OUTPUT_THRESHOLD: lambda answer: answer.threshold,
    contract.OUTPUT_MODEL_ID: lambda answer: answer.model_id.encode(),
}
_DTYPES = {"BYTES": np.object_, "FP32": np.float32}


class TritonPythonModel:
    """logits FP32 [-1, 2] -> prediction, confidence, probability, threshold, model_id, each [-1, 1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read temperature, threshold and identity."""
        path = Path(args["model_repository"]) / args["model_version"] / contract.BUNDLE_MANIFEST
        self.manifest = Manifest.read(path)
        self.model_id = manifest_model_id(path)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, contract.TENSOR_OUTPUT).as_numpy()
        answers = predictions(logits, self.manifest.temperature, self.manifest.threshold, self.model_id)
        return pb_utils.InferenceResponse([self._tensor(name, answers) for name in contract.ENSEMBLE_OUTPUTS])

    def _tensor(self, name: str, answers: list[Prediction]) -> Any:
        column = np.array([[_COLUMNS[name](answer)] for answer in answers], _DTYPES[contract.ENSEMBLE_OUTPUTS[name]])
        return pb_utils.Tensor(name, column)
