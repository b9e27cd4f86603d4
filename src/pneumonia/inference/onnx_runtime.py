"""ONNX Runtime in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.core.cores import compute_threads
from pneumonia.core.prediction import Prediction, predictions
from pneumonia.core.preprocess import preprocess
from pneumonia.errors import BundleError, DeviceUnavailable

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def open_session(graph: Path, device: str, spinning: bool = True, threads: int = 0) -> Any:
    """An onnxruntime.InferenceSession on `device` (auto, cpu or cuda), with a thread for each core that it may use.

    spinning: threads that wait for work burn their core meanwhile, which answers a lone caller sooner.
    threads: for one run, in place of a thread for each core; several callers may run one session at a time.

    Raises DeviceUnavailable where cuda is asked for and this ONNX Runtime has none, BundleError where the graph cannot
    be read.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "cuda" and _CUDA not in available:
        raise DeviceUnavailable(
            f"--device cuda: this ONNX Runtime offers {', '.join(available)}; install onnxruntime-gpu on a machine "
            "with an NVIDIA GPU, or use --device cpu"
        )
    providers = [_CPU] if device == "cpu" or _CUDA not in available else [_CUDA, _CPU]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or compute_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a class of its own for each cause, all of them from Exception.
        raise BundleError(f"{graph}: ONNX Runtime cannot load it ({error}); export the bundle again") from error


def graph_for(bundle: Bundle, device: str) -> str:
    """The file of `bundle` that a device runs: int8 is made for processors, and its gain was measured there."""
    return contract.INT8_FILE if device != "cuda" and bundle.has(contract.INT8_FILE) else contract.ONNX_FILE


class OnnxPredictor:
    """Answers with the ONNX graph of a bundle: model.int8.onnx on a processor where there is one, else model.onnx."""

    def __init__(self, bundle: Path | None, device: str) -> None:
        self.bundle = open_bundle(bundle)
        self.session = open_session(self.bundle.file(graph_for(self.bundle, device)), device)

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """See `Predictor`."""
        if not images:
            return []
        return self.answer(preprocess(images, self.bundle.manifest.preprocessing))

    def answer(self, pixel_values: npt.NDArray[np.float32]) -> list[Prediction]:
        """See `TensorPredictor`."""
        manifest = self.bundle.manifest
        (logits,) = self.session.run([contract.TENSOR_OUTPUT], {contract.TENSOR_INPUT: pixel_values})
        return predictions(logits, manifest.point, self.bundle.model_id)
