"""TensorRT in this process. Written against the TensorRT 10 bindings; not run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.bundle import open_bundle
from pneumonia.core.prediction import Prediction, predictions
from pneumonia.core.preprocess import preprocess
from pneumonia.errors import BundleError, DependencyMissing, DeviceUnavailable


def load_libraries(what: str = "--mode tensorrt") -> tuple[Any, Any]:
    """tensorrt and torch, on a machine that can use them. what: who asks, for the messages."""
    try:
        import tensorrt
    except ImportError as error:
        raise DependencyMissing(
            f"{what} needs the package tensorrt and an NVIDIA GPU: pip install 'pneumonia[tensorrt]' on a GPU machine, "
            "or use --mode onnx"
        ) from error
    try:
        import torch
    except ImportError as error:
        raise DependencyMissing(f"{what} needs torch for device memory: pip install 'pneumonia[train]'") from error
    if not torch.cuda.is_available():
        raise DeviceUnavailable(f"{what}: no NVIDIA GPU is visible here; use --mode onnx")
    return tensorrt, torch


def machine(tensorrt: Any, torch: Any) -> dict[str, str]:
    """What an engine is bound to: the TensorRT release, and the GPU by name and compute capability."""
    major, minor = torch.cuda.get_device_capability()
    gpu = torch.cuda.get_device_name()
    return {"tensorrt": tensorrt.__version__, "gpu": gpu, "compute_capability": f"{major}.{minor}"}


def require_machine(engine: Path, built: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raises DeviceUnavailable, naming both, where an engine was built for another machine than the one here.

    built: the bundle's versions; here: what `machine` says.
    """
    if any(built.get(name, found) != found for name, found in here.items()):
        names = ("tensorrt", "gpu", "compute_capability")
        theirs, ours = (", ".join(f"{name} {said.get(name, 'unknown')}" for name in names) for said in (built, here))
        raise DeviceUnavailable(
            f"{engine}: built for {theirs}; here is {ours}; build the engine again on this machine with `pneumoctl "
            "export --tensorrt`, or use --mode onnx"
        )


class TensorRTPredictor:
    """Answers with model.engine of a bundle, built on a GPU of the same kind."""

    def __init__(self, bundle: Path | None, device: str) -> None:
        if device == "cpu":
            raise DeviceUnavailable("--mode tensorrt runs on a GPU only; use --device cuda, or --mode onnx")
        self.tensorrt, self.torch = load_libraries()
        self.bundle = open_bundle(bundle)
        path = self.bundle.file(contract.ENGINE_FILE)
        require_machine(path, self.bundle.manifest.versions, machine(self.tensorrt, self.torch))
        runtime = self.tensorrt.Runtime(self.tensorrt.Logger(self.tensorrt.Logger.WARNING))
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise BundleError(
                f"{path}: TensorRT {self.tensorrt.__version__} on {self.torch.cuda.get_device_name()} cannot load it; "
                "an engine runs only with the release and the GPU it was built for, build it again here"
            )
        self.context = self.engine.create_execution_context()
        # The profile's (least, usual, largest) input shapes; what is longer goes in several runs.
        self.largest = int(self.engine.get_tensor_profile_shape(contract.TENSOR_INPUT, 0)[2][0])

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """See `Predictor`."""
        manifest = self.bundle.manifest
        answers: list[Prediction] = []
        for start in range(0, len(images), self.largest):
            logits = self.logits(preprocess(images[start : start + self.largest], manifest.preprocessing))
            answers += predictions(logits, manifest.point, self.bundle.model_id)
        return answers

    def logits(self, pixel_values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """pixel_values (B, 3, 224, 224), B from 1 up -> logits (B, 2), in as many runs as the profile needs."""
        starts = range(0, len(pixel_values), self.largest)
        batches = [self.torch.from_numpy(pixel_values[start : start + self.largest]).cuda() for start in starts]
        return np.concatenate([self._run(batch) for batch in batches])

    def _run(self, pixel_values: Any) -> Any:
        """pixel_values (B, 3, 224, 224) float32 on the GPU -> logits (B, 2) float32 as a numpy array."""
        logits = self.torch.empty((len(pixel_values), len(contract.LABELS)), dtype=self.torch.float32, device="cuda")
        self.context.set_input_shape(contract.TENSOR_INPUT, tuple(pixel_values.shape))
        self.context.set_tensor_address(contract.TENSOR_INPUT, pixel_values.data_ptr())
        self.context.set_tensor_address(contract.TENSOR_OUTPUT, logits.data_ptr())
        stream = self.torch.cuda.current_stream()
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise DeviceUnavailable("TensorRT could not run the engine; its own log above says why")
        stream.synchronize()
        return logits.cpu().numpy()
