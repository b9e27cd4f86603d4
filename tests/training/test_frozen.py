"""A linear head on a frozen checkpoint: the checkpoint stays, the head learns, and the bundle is like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

from pneumonia.architecture import load_model
from pneumonia.config.schema import ModelConfig
from pneumonia.core.metrics import point_metrics
from pneumonia.core.prediction import pneumonia_probability
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import ConfigError, UsageError
from pneumonia.training.dataset import Collator, predict_logits
from pneumonia.training.frozen import features_of, fit_head
from pneumonia.training.model import build_model
from pneumonia.training.pretrained import head_of
from pneumonia.training.train import train
from tests.phantoms import smoke_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 of random weights: random features tell a phantom's opacity well enough."""
    folder = Path(tmp_path_factory.mktemp("dinov2"))
    torch.manual_seed(5)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 28, "image_size": 280}
    Dinov2ForImageClassification(Dinov2Config(**shape, num_labels=2)).save_pretrained(folder)
    return folder


def test_the_head_learns_and_nothing_else_changes(checkpoint: Path, prepared: PreparedData, tmp_path: Path) -> None:
    config = smoke_config(tmp_path, f"model.checkpoint={checkpoint}", "model.freeze=true")
    bundle = train(config, prepared.path, tmp_path / "run" / "bundle")
    start, trained = build_model(config.model), load_model(bundle.path)
    head = {id(value) for value in head_of(trained).parameters()}
    for (name, value), (other, before) in zip(trained.named_parameters(), start.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(value, before) != (id(value) in head), name
    rows = prepared.indices("train")
    probability = pneumonia_probability(predict_logits(trained, prepared, rows), bundle.manifest.temperature)
    assert point_metrics(prepared.labels[rows], probability, 0.5)["auroc"] > 0.75
    assert (tmp_path / "run" / "history.json").is_file()


def test_the_folded_head_answers_as_the_regression_that_was_fitted(
    checkpoint: Path, prepared: PreparedData, tmp_path: Path
) -> None:
    config = smoke_config(tmp_path, f"model.checkpoint={checkpoint}", "model.freeze=true", "model.freeze_views=1")
    model = build_model(config.model)
    chosen = fit_head(config, prepared, model)
    # By the model's own answers, the figure that chose the penalty comes out again.
    collator = Collator(prepared, config.training.augment, config.training.seed)
    rows = prepared.indices("val")
    features = torch.from_numpy(features_of(model, collator, rows, "validation"))
    with torch.inference_mode():
        logits = head_of(model)(features).numpy()
    auroc = point_metrics(prepared.labels[rows], pneumonia_probability(logits, 1.0), 0.5)["auroc"]
    assert auroc == pytest.approx(chosen["auroc"], abs=0.01)


def test_features_are_what_the_head_is_given(checkpoint: Path, prepared: PreparedData) -> None:
    model = build_model(ModelConfig(checkpoint=str(checkpoint)))
    rows = prepared.indices("val")[:5]
    features = features_of(model, Collator(prepared, None, 1), rows, "validation")
    assert features.shape == (5, head_of(model).in_features)
    with torch.inference_mode():
        logits = head_of(model)(torch.from_numpy(features)).numpy()
    # bfloat16, where the processor has it.
    np.testing.assert_allclose(logits, predict_logits(model, prepared, rows), atol=0.05)


def test_what_cannot_be_frozen_is_refused(
    checkpoint: Path, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="needs trained features"):
        ModelConfig(freeze=True)
    frozen = ("model.freeze=true", f"model.checkpoint={checkpoint}")
    with pytest.raises(UsageError, match="in one process and in one go"):
        train(smoke_config(tmp_path, *frozen, "training.resume=true"), prepared.path, tmp_path / "run" / "bundle")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="in one process and in one go"):
        train(smoke_config(tmp_path, *frozen), prepared.path, tmp_path / "run" / "bundle")
