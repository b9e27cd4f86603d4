"""Real pre-trained weights: DINOv2's features tell pneumonia on a tenth of the patients, frozen and fine-tuned.

The weights are those of facebook/dinov2-small, in a folder; skipped where there is none.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pneumonia.config.compose import compose
from pneumonia.data.prepare import PreparedData, prepare
from pneumonia.data.sources import fetch
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.export.to_onnx import export_onnx
from pneumonia.inference.predictor import open_predictor
from pneumonia.training.train import train
from tests.conftest import ROOT

WEIGHTS_ENV = "PNEUMONIA_DINOV2"


@pytest.fixture(scope="module")
def weights() -> Path:
    """The folder of the weights."""
    given = os.environ.get(WEIGHTS_ENV)
    folder = Path(given) if given else ROOT.parent / "shared" / "models" / "dinov2-small"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no DINOv2 weights at ../shared/models/dinov2-small; set {WEIGHTS_ENV} to a folder of them")
    return folder.resolve()


@pytest.fixture(scope="module")
def tenth(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """A tenth of the patients."""
    folder = Path(tmp_path_factory.mktemp("tenth"))
    config = compose(["data=folder", f"data.root={xrays}", "data.fraction=0.1"])
    return prepare(config, fetch(config.data, folder / "raw"), folder / "prepared")


WAYS = {
    "frozen": ["model.freeze=true", "model.freeze_views=1"],
    "fine-tuned": ["model.freeze=false", "training.max_steps=40", "training.per_device_train_batch_size=8",
                   "training.gradient_accumulation_steps=1"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", sorted(WAYS))
def test_dinov2_tells_pneumonia_and_is_served_like_any_bundle(
    way: str, weights: Path, tenth: PreparedData, xrays: Path, tmp_path: Path
) -> None:
    config = compose(["experiment=dinov2_small", f"model.checkpoint={weights}", "tracking.uri=null", *WAYS[way],
                      "evaluation.recall_target=0.8", "evaluation.stress=false", f"output_dir={tmp_path}"])  # fmt: skip
    bundle = train(config, tenth.path, tmp_path / "run" / "bundle")
    auroc = bundle.manifest.metrics["val"]["auroc"]["value"]
    assert auroc is not None
    assert auroc > 0.95
    evaluate(config, bundle.path, tenth.path, tmp_path / "evaluation")
    final = export_onnx(config, bundle.path, tmp_path / "evaluation", tenth.path, tmp_path / "models")
    images = [(xrays / tenth.index["path"][row]).read_bytes() for row in tenth.indices("test")[::10]]
    said = [open_predictor(mode, final.path, "cpu").predict(images) for mode in ("onnx", "pytorch")]
    for one, other in zip(*said, strict=True):
        assert one.label == other.label
        assert abs(one.probability - other.probability) < 1e-3
