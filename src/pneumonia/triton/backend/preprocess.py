"""Triton model: encoded images to the tensor model's input, through the one preprocessing path."""

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

import triton_python_backend_utils as pb_utils  # noqa: E402

from pneumonia import contract  # noqa: E402
from pneumonia.bundle import Manifest  # noqa: E402
from pneumonia.core.image import unwrap_base64  # noqa: E402
from pneumonia.core.preprocess import preprocess  # noqa: E402
from pneumonia.errors import DependencyMissing, ImageError  # noqa: E402


class TritonPythonModel:
    """image BYTES [-1, 1] -> pixel_values FP32 [-1, 3, 224, 224]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's preprocessing."""
        path = Path(args["model_repository"]) / args["model_version"] / contract.BUNDLE_MANIFEST
        self.spec = Manifest.read(path).preprocessing

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: a bad image fails its request (HTTP 400) and no other of the batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(request, contract.ENSEMBLE_INPUT)
        images = [unwrap_base64(bytes(value)) for value in tensor.as_numpy().reshape(-1)]
        try:
            batch = preprocess(images, self.spec)
        except ImageError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        except DependencyMissing as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.UNSUPPORTED))
        return pb_utils.InferenceResponse([pb_utils.Tensor(contract.TENSOR_INPUT, batch)])
