"""A site's images move temperature and threshold, never weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.core.calibration import fit_temperature
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import DataError
from pneumonia.training.calibrate import calibrate
from pneumonia.training.dataset import predict_logits
from tests.phantoms import prepared_phantoms, smoke_config


def test_a_site_of_its_own_gets_its_own_temperature_and_threshold(trained: Bundle, tmp_path: Path) -> None:
    from pneumonia.architecture import load_model

    site = prepared_phantoms(tmp_path / "site", "data.seed=7")
    new = calibrate(smoke_config(tmp_path), trained.path, site.path, tmp_path / "calibrated")
    assert new.manifest.files[contract.WEIGHTS_FILE] == trained.manifest.files[contract.WEIGHTS_FILE]
    logits = predict_logits(load_model(trained.path), site, np.arange(len(site.labels)))
    assert new.manifest.temperature == pytest.approx(fit_temperature(logits, site.labels), rel=1e-6)
    assert new.manifest.metrics["calibration"]["recall"]["low"] >= new.manifest.recall_target
    # Figures of another threshold do not describe this bundle.
    assert "val" not in new.manifest.metrics
    assert new.manifest.data["calibrated_on"]["digest"] == site.manifest["digest"]
    assert new.model_id != trained.model_id
    assert new.manifest.synthetic


def test_the_images_of_the_training_are_refused(trained: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="with these very images"):
        calibrate(smoke_config(tmp_path), trained.path, prepared.path, tmp_path / "calibrated")
    assert not (tmp_path / "calibrated").exists()
