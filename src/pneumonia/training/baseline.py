"""Logistic regression on fixed features: what a model has to beat before its size is worth anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia.config.schema import Config, ModelConfig
from pneumonia.core.metrics import metrics_with_intervals
from pneumonia.core.preprocess import Preprocessing, normalize
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.files import write_json
from pneumonia.training.model import missing_model, require_model

RESNET = "microsoft/resnet-18"
PIXELS = "pixels"
_OTHERWISE = f"compare with plain pixels by model.baseline={PIXELS}"
_SIDE = 28


def require_network(config: ModelConfig) -> None:
    """Raise MissingPrerequisite where the network of `config.baseline` is neither here nor on a hub that answers."""
    if config.baseline != PIXELS:
        require_model("model.baseline", config.baseline, _OTHERWISE)


def train_baseline(config: Config, prepared: Path, out: Path) -> dict[str, Any]:
    """Fit on `train`, score on `test`, write `out` (baseline.json) and return what it holds.

    Features are those of `config.model.baseline`: `microsoft/resnet-18` (Hugging Face hub or a folder), pooled (512),
    or `pixels`, the image at 28x28 (784), which needs no download; a comparison with pixels is informational. The
    decision is at .5. Raises MissingPrerequisite where the network's weights are neither here nor on a hub that
    answers.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    require_network(config.model)
    data = load_prepared(prepared)
    features = features_of(data, config.model.baseline)
    train, test = data.indices("train"), data.indices("test")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))
    model.fit(features[train], data.labels[train])
    probability = model.predict_proba(features[test])[:, 1]
    figures = metrics_with_intervals(
        data.labels[test], probability, 0.5, data.patients[test], config.evaluation.bootstrap_samples,
        config.evaluation.seed, config.evaluation.prevalence,
    )  # fmt: skip
    result = {
        "features": config.model.baseline,
        "informational": config.model.baseline == PIXELS,
        "data_digest": data.manifest["digest"],
        "synthetic": data.manifest["synthetic"],
        "test": {name: interval.to_json() for name, interval in figures.items()},
    }
    write_json(out, result)
    return result


def features_of(data: PreparedData, kind: str) -> npt.NDArray[np.float32]:
    """float32 (N, D) for every image of `data`: D = 784 for pixels, 512 for ResNet-18."""
    return _pixel_features(data) if kind == PIXELS else _network_features(data, kind)


def _pixel_features(data: PreparedData) -> npt.NDArray[np.float32]:
    block = data.pixels.shape[1] // _SIDE
    parts = []
    for start in range(0, len(data.pixels), 512):
        gray = np.asarray(data.pixels[start : start + 512], np.float32)
        small = gray.reshape(len(gray), _SIDE, block, _SIDE, block).mean(axis=(2, 4))  # (B, 28, 28)
        parts.append(small.reshape(len(gray), -1) / 255)
    return np.concatenate(parts)


def _network_features(data: PreparedData, checkpoint: str) -> npt.NDArray[np.float32]:
    import torch
    from transformers import AutoModel

    try:
        network = AutoModel.from_pretrained(
            checkpoint, local_files_only=Path(checkpoint).is_dir(), use_safetensors=True, trust_remote_code=False
        ).eval()
    except (OSError, ValueError) as error:
        raise missing_model("model.baseline", checkpoint, _OTHERWISE) from error
    spec = Preprocessing.from_json(data.manifest["preprocessing"])
    parts = []
    with torch.inference_mode():
        for start in range(0, len(data.pixels), 64):
            batch = torch.from_numpy(normalize(np.asarray(data.pixels[start : start + 64]), spec))
            parts.append(network(batch).pooler_output.flatten(1).numpy())
            if start % 1024 == 0:
                print(f"baseline: {start} of {len(data.pixels)} images", file=sys.stderr, flush=True)
    return np.concatenate(parts)
