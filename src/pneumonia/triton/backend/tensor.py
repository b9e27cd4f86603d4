"""Triton model: the tensor model through ONNX Runtime, for servers without an ONNX Runtime backend of their own."""

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
from pneumonia.inference.onnx_runtime import open_session  # noqa: E402


class TritonPythonModel:
    """pixel_values FP32 [-1, 3, 224, 224] -> logits FP32 [-1, 2]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph."""
        folder = Path(args["model_repository"]) / args["model_version"]
        # Cores burnt while waiting are those that decode the next images and speak HTTP.
        self.session = open_session(folder / contract.ONNX_FILE, "cpu", spinning=False)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch and hand each its rows."""
        parts = [pb_utils.get_input_tensor_by_name(request, contract.TENSOR_INPUT).as_numpy() for request in requests]
        batch = parts[0] if len(parts) == 1 else np.concatenate(parts)
        (logits,) = self.session.run([contract.TENSOR_OUTPUT], {contract.TENSOR_INPUT: batch})
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(contract.TENSOR_OUTPUT, np.ascontiguousarray(rows))])
            for rows in np.split(logits, ends)
        ]
