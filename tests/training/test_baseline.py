"""The baseline learns from training images alone and says which features it used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pneumonia.data.prepare import PreparedData
from pneumonia.errors import MissingPrerequisite
from pneumonia.training.baseline import features_of, train_baseline
from tests.phantoms import smoke_config


def test_pixels_find_the_opacity_of_phantoms_and_the_comparison_is_informational(
    prepared: PreparedData, tmp_path: Path
) -> None:
    result = train_baseline(smoke_config(tmp_path), prepared.path, tmp_path / "baseline.json")
    assert json.loads((tmp_path / "baseline.json").read_text()) == result
    assert (result["features"], result["informational"], result["synthetic"]) == ("pixels", True, True)
    assert result["test"]["auroc"]["value"] > 0.9
    assert features_of(prepared, "pixels").shape == (len(prepared.labels), 784)


def test_labels_without_a_meaning_give_chance(prepared: PreparedData, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    features = features_of(prepared, "pixels")
    rng = np.random.default_rng(0)
    train, test = prepared.indices("train"), np.concatenate([prepared.indices("val"), prepared.indices("test")])
    scores = []
    for _ in range(20):
        labels = rng.permutation(prepared.labels)
        model = LogisticRegression(C=0.001, max_iter=200).fit(features[train], labels[train])
        scores.append(roc_auc_score(labels[test], model.decision_function(features[test])))
    assert abs(np.mean(scores) - 0.5) < 0.07


def test_a_small_resnet_from_a_folder_gives_pooled_features(prepared: PreparedData, tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    # ResNet-18's blocks and width at the end, narrow before, with random weights: the features of real code.
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 512], depths=[1, 1, 1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    result = train_baseline(
        smoke_config(tmp_path, f"model.baseline={tmp_path / 'resnet'}"), prepared.path, tmp_path / "baseline.json"
    )
    assert not result["informational"]
    assert features_of(prepared, str(tmp_path / "resnet")).shape == (len(prepared.labels), 512)


def test_an_unreachable_network_names_the_offline_way(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = smoke_config(tmp_path, "model.baseline=nobody/no-such-network")
    with pytest.raises(MissingPrerequisite, match=r"model\.baseline=pixels"):
        train_baseline(config, prepared.path, tmp_path / "baseline.json")
    assert not (tmp_path / "baseline.json").exists()
