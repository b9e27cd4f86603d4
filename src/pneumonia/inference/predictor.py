"""The one-method seam between a caller with images and whatever answers them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.core.prediction import Prediction
from pneumonia.errors import UsageError

DEFAULT_TIMEOUT_S = 30.0


class Predictor(Protocol):
    """Answers encoded images."""

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """Encoded JPEG, PNG or DICOM bytes -> one Prediction an image, in order.

        Raises ImageError for an image that cannot be decoded, NoAnswer for one whose logits are not finite,
        ServerUnavailable where a server does not answer.
        """
        ...


class TensorPredictor(Predictor, Protocol):
    """A predictor that runs its model in this process."""

    bundle: Bundle

    def answer(self, pixel_values: npt.NDArray[np.float32]) -> list[Prediction]:
        """What `pneumonia.core.preprocess` makes of images, (B, 3, size, size) -> one Prediction each, in order.

        Raises NoAnswer where the logits of one are not finite.
        """
        ...


# Each module is imported only when its mode is asked for: torch alone takes longer than a whole answer.
_MODES = {
    "onnx": ("pneumonia.inference.onnx_runtime", "OnnxPredictor"),
    "pytorch": ("pneumonia.inference.torch_model", "TorchPredictor"),
    "tensorrt": ("pneumonia.inference.trt_engine", "TensorRTPredictor"),
}


def open_predictor(
    mode: str,
    bundle: Path | None = None,
    device: str = "auto",
    url: str | None = None,
    protocol: str = "http",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry_for_s: float = 0.0,
) -> Predictor:
    """The predictor for a mode of contract.INFER_MODES.

    bundle: folder for every mode but triton, default as in `open_bundle`. device: auto, cpu or cuda. url: host:port of
    a server, for triton, by default its standard port on this machine. retry_for_s: how long a request is tried again
    where that server is busy or away. Raises UsageError for an unknown word,
    MissingPrerequisite where a bundle, a package or a GPU is missing.
    """
    for word, value, allowed in (
        ("mode", mode, contract.INFER_MODES),
        ("device", device, contract.DEVICES),
        ("protocol", protocol, contract.PROTOCOLS),
    ):
        if value not in allowed:
            raise UsageError(f"{word} {value!r}: not one of {', '.join(allowed)}")
    if mode == "triton":
        from pneumonia.inference.triton_client import TritonPredictor

        return TritonPredictor(url, protocol, timeout_s, retry_for_s)
    module, name = _MODES[mode]
    predictor: Predictor = getattr(importlib.import_module(module), name)(bundle, device)
    return predictor
