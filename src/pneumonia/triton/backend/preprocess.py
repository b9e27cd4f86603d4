"""Triton model: encoded images to the tensor model's input, through the one preprocessing path."""

from __future__ import annotations

import io
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
from PIL import Image  # noqa: E402

from pneumonia import contract  # noqa: E402
from pneumonia.bundle import Manifest, manifest_model_id  # noqa: E402
from pneumonia.core.image import unwrap_base64  # noqa: E402
from pneumonia.core.preprocess import preprocess  # noqa: E402
from pneumonia.errors import DependencyMissing, ImageError  # noqa: E402
from pneumonia.triton.request_log import RequestLog  # noqa: E402


class TritonPythonModel:
    """image BYTES [-1, 1] -> pixel_values FP32 [-1, 3, 224, 224]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's preprocessing and run it once, so that the first request does not wait for that."""
        path = Path(args["model_repository"]) / args["model_version"] / contract.BUNDLE_MANIFEST
        self.spec = Manifest.read(path).preprocessing
        self.log = RequestLog(manifest_model_id(path))
        stream = io.BytesIO()
        Image.linear_gradient("L").resize((2 * self.spec.size, 2 * self.spec.size)).save(stream, "JPEG")
        preprocess([stream.getvalue()], self.spec)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: a bad image fails its request (HTTP 400) and no other of the batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            tensor = pb_utils.get_input_tensor_by_name(request, contract.ENSEMBLE_INPUT)
            batch = preprocess(_images(tensor.as_numpy().reshape(-1)), self.spec)
        except ImageError as error:
            return self._refuse(str(error), pb_utils.TritonError.INVALID_ARG)
        except DependencyMissing as error:
            return self._refuse(str(error), pb_utils.TritonError.UNSUPPORTED)
        except Exception as error:  # Whatever it is, it belongs to this request; raised, it would fail the batch.
            return self._refuse(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor(contract.TENSOR_INPUT, batch)])

    def _refuse(self, reason: str, code: Any) -> Any:
        # The reason may quote the first bytes of what came, so the log gets only that there was one.
        self.log.write(error="refused" if code == pb_utils.TritonError.INVALID_ARG else "failed")
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))


def _images(values: Any) -> list[bytes]:
    """The encoded images of a request. Raises ImageError where they are too many bytes, or none."""
    size = sum(map(len, values))
    if size > contract.MAX_REQUEST_BYTES:
        raise ImageError(
            f"{size:,} bytes; one request may carry {contract.MAX_REQUEST_BYTES:,}, send fewer or smaller images"
        )
    if not len(values):
        raise ImageError("no image in the request; send at least one")
    return [unwrap_base64(bytes(value)) for value in values]
