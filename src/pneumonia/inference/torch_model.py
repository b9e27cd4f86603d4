"""PyTorch in this process: the reference that every other form is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumonia.bundle import open_bundle
from pneumonia.core.prediction import Prediction, predictions
from pneumonia.core.preprocess import preprocess
from pneumonia.errors import DependencyMissing, DeviceUnavailable


class TorchPredictor:
    """Answers with model.safetensors of a bundle, in float32."""

    def __init__(self, bundle: Path | None, device: str) -> None:
        self.bundle = open_bundle(bundle)
        try:
            import torch

            from pneumonia.architecture import load_model
        except ImportError as error:
            raise DependencyMissing(f"--mode pytorch needs {error.name}: pip install 'pneumonia[train]'") from error
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceUnavailable(
                "--device cuda: PyTorch sees no GPU; use --device cpu or a CUDA build on a GPU machine"
            )
        self.device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        self.model = load_model(self.bundle.path).to(self.device)

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """See `Predictor`."""
        if not images:
            return []
        return self.answer(preprocess(images, self.bundle.manifest.preprocessing))

    def answer(self, pixel_values: npt.NDArray[np.float32]) -> list[Prediction]:
        """See `TensorPredictor`."""
        import torch

        manifest = self.bundle.manifest
        with torch.inference_mode():
            logits = (
                self.model(pixel_values=torch.from_numpy(pixel_values).to(self.device)).logits.float().cpu().numpy()
            )
        return predictions(logits, manifest.point, self.bundle.model_id)
