"""Triton model: logits to the answer, at the bundle's operating point."""

from __future__ import annotations

import json
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
from pneumonia.errors import NoAnswer  # noqa: E402
from pneumonia.triton.request_log import RequestLog  # noqa: E402

_COLUMNS = {
    contract.OUTPUT_PREDICTION: lambda answer: answer.label.encode(),
    contract.OUTPUT_CONFIDENCE: lambda answer: answer.confidence,
    contract.OUTPUT_PROBABILITY: lambda answer: answer.probability,
    contract.OUTPUT_THRESHOLD: lambda answer: answer.threshold,
    contract.OUTPUT_UNCERTAIN: lambda answer: answer.uncertain,
    contract.OUTPUT_MODEL_ID: lambda answer: answer.model_id.encode(),
}
_DTYPES = {"BYTES": np.object_, "FP32": np.float32, "BOOL": np.bool_}


class TritonPythonModel:
    """logits FP32 [-1, 2] -> prediction, confidence, probability, threshold, uncertain, model_id, each [-1, 1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the operating point and identity; register the metrics."""
        path = Path(args["model_repository"]) / args["model_version"] / contract.BUNDLE_MANIFEST
        self.manifest = Manifest.read(path)
        self.model_id = manifest_model_id(path)
        self.log = RequestLog(self.model_id)
        # Those of the release, which may be from before some of contract.ENSEMBLE_OUTPUTS.
        self.outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]
        self._predictions = pb_utils.MetricFamily(
            name=contract.METRIC_PREDICTIONS, description="Images answered", kind=pb_utils.MetricFamily.COUNTER
        )
        self.answered = {label: self._predictions.Metric(labels={"label": label}) for label in contract.LABELS}
        self._confidences = pb_utils.MetricFamily(
            name=contract.METRIC_CONFIDENCE,
            description="Calibrated probability of the answered class",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        self.confidence = self._confidences.Metric(labels={}, buckets=list(contract.CONFIDENCE_BUCKETS))

    def finalize(self) -> None:
        """Take leave of the metrics while the server still listens: destroyed later, they end this process badly."""
        del self.answered, self.confidence
        del self._predictions, self._confidences

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, contract.TENSOR_OUTPUT).as_numpy()
        try:
            answers = predictions(logits, self.manifest.point, self.model_id)
        except NoAnswer as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        self._record(answers)
        return pb_utils.InferenceResponse([self._tensor(name, answers) for name in self.outputs])

    def _record(self, answers: list[Prediction]) -> None:
        """Count and log what is answered."""
        for answer in answers:
            self.answered[answer.label].increment(1)
            self.confidence.observe(answer.confidence)
            self.log.write(prediction=answer.label, confidence=round(answer.confidence, 6),
                           probability=round(answer.probability, 6), threshold=answer.threshold,
                           uncertain=answer.uncertain)  # fmt: skip

    def _tensor(self, name: str, answers: list[Prediction]) -> Any:
        column = np.array([[_COLUMNS[name](answer)] for answer in answers], _DTYPES[contract.ENSEMBLE_OUTPUTS[name]])
        return pb_utils.Tensor(name, column)
