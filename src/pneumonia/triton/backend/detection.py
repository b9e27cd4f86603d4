"""Triton model for processors: encoded images to answers in one process, decoding and ONNX Runtime together."""

from __future__ import annotations

import io
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
from PIL import Image  # noqa: E402

from pneumonia import contract  # noqa: E402
from pneumonia.bundle import Manifest, manifest_model_id  # noqa: E402
from pneumonia.core.cores import compute_threads  # noqa: E402
from pneumonia.core.image import unwrap_base64  # noqa: E402
from pneumonia.core.prediction import Prediction, predictions  # noqa: E402
from pneumonia.core.preprocess import preprocess  # noqa: E402
from pneumonia.errors import DependencyMissing, ImageError, NoAnswer  # noqa: E402
from pneumonia.inference.onnx_runtime import open_session  # noqa: E402
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
    """image BYTES [-1, 1] -> prediction, confidence, probability, threshold, uncertain, model_id, each [-1, 1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph, run all of it once so that ready means warm, and register the metrics."""
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = folder / contract.BUNDLE_MANIFEST
        self.manifest = Manifest.read(manifest)
        self.model_id = manifest_model_id(manifest)
        self.log = RequestLog(self.model_id)
        # Those of the release, which may be from before some of contract.ENSEMBLE_OUTPUTS.
        self.outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]
        # Cores burnt while waiting are those that decode the next images and speak HTTP.
        cores = compute_threads()
        # Two instances share the cores; a lone request of a large model takes at least two of them.
        self.session = open_session(folder / contract.ONNX_FILE, "cpu", False, max(min(2, cores), cores // 2))
        side = 2 * self.manifest.preprocessing.size
        stream = io.BytesIO()
        # Not one grey: that is no radiograph, and refused.
        Image.linear_gradient("L").resize((side, side)).save(stream, "JPEG")
        self._logits([stream.getvalue()])
        self._register()

    def _register(self) -> None:
        def counter(name: str, description: str) -> Any:
            return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)

        self._predictions = counter(contract.METRIC_PREDICTIONS, "Images answered")
        self.answered = {label: self._predictions.Metric(labels={"label": label}) for label in contract.LABELS}
        self._refused = counter(contract.METRIC_REFUSED, "Requests that got no answer from the model")
        self.refused = {why: self._refused.Metric(labels={"why": why}) for why in contract.REFUSED_WHY}
        self._running = pb_utils.MetricFamily(
            name=contract.METRIC_RUNNING, description="Requests being answered", kind=pb_utils.MetricFamily.GAUGE
        )
        self.running = self._running.Metric(labels={})
        self._confidences = pb_utils.MetricFamily(
            name=contract.METRIC_CONFIDENCE,
            description="Calibrated probability of the answered class",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        self.confidence = self._confidences.Metric(labels={}, buckets=list(contract.CONFIDENCE_BUCKETS))

    def finalize(self) -> None:
        """Take leave of the metrics while the server still listens: destroyed later, they end this process badly."""
        del self.answered, self.refused, self.running, self.confidence
        del self._predictions, self._refused, self._running, self._confidences

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: a bad image fails its request (HTTP 400) and no other."""
        self.running.increment(len(requests))
        try:
            return [self._answer(request) for request in requests]
        finally:
            self.running.increment(-len(requests))

    def _answer(self, request: Any) -> Any:
        try:
            tensor = pb_utils.get_input_tensor_by_name(request, contract.ENSEMBLE_INPUT)
            logits = self._logits(_images(tensor.as_numpy().reshape(-1)))
            answers = predictions(logits, self.manifest.point, self.model_id)
        except ImageError as error:
            return self._refuse(str(error), pb_utils.TritonError.INVALID_ARG)
        except DependencyMissing as error:
            return self._refuse(str(error), pb_utils.TritonError.UNSUPPORTED)
        except NoAnswer as error:
            return self._refuse(str(error), pb_utils.TritonError.INTERNAL)
        except Exception as error:  # Whatever it is, it belongs to this request; raised, it would fail the batch.
            return self._refuse(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
        self._record(answers)
        return pb_utils.InferenceResponse([_tensor(name, answers) for name in self.outputs])

    def _logits(self, images: list[bytes]) -> Any:
        batch = preprocess(images, self.manifest.preprocessing)
        (logits,) = self.session.run([contract.TENSOR_OUTPUT], {contract.TENSOR_INPUT: batch})
        return logits

    def _refuse(self, reason: str, code: Any) -> Any:
        # The reason may quote the first bytes of what came, so the log gets only that there was one.
        image = code == pb_utils.TritonError.INVALID_ARG
        self.log.write(error="refused" if image else "failed")
        self.refused["image" if image else "failed"].increment(1)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))

    def _record(self, answers: list[Prediction]) -> None:
        """Count and log what is answered."""
        for answer in answers:
            self.answered[answer.label].increment(1)
            self.confidence.observe(answer.confidence)
            self.log.write(prediction=answer.label, confidence=round(answer.confidence, 6),
                           probability=round(answer.probability, 6), threshold=answer.threshold,
                           uncertain=answer.uncertain)  # fmt: skip


def _tensor(name: str, answers: list[Prediction]) -> Any:
    column = np.array([[_COLUMNS[name](answer)] for answer in answers], _DTYPES[contract.ENSEMBLE_OUTPUTS[name]])
    return pb_utils.Tensor(name, column)


def _images(values: Any) -> list[bytes]:
    """The encoded images of a request. Raises ImageError where they are too many, too many bytes, or none."""
    size = sum(map(len, values))
    if size > contract.MAX_REQUEST_BYTES:
        raise ImageError(
            f"{size:,} bytes; one request may carry {contract.MAX_REQUEST_BYTES:,}, send fewer or smaller images"
        )
    if not len(values):
        raise ImageError("no image in the request; send at least one")
    return [unwrap_base64(bytes(value)) for value in values]
