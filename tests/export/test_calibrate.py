"""A site's images move temperature and threshold, never weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle
from pneumonia.core.calibration import fit_temperature_and_offset
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import DataError, ParityRefused
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.export.calibrate import calibrate, for_prevalence
from pneumonia.export.to_onnx import export_onnx
from pneumonia.training.dataset import predict_logits
from tests.phantoms import prepared_phantoms, smoke_config


def test_a_site_of_its_own_gets_its_own_temperature_and_threshold(trained: Bundle, tmp_path: Path) -> None:
    from pneumonia.architecture import load_model

    site = prepared_phantoms(tmp_path / "site", "data.seed=7")
    new = calibrate(smoke_config(tmp_path), trained.path, site.path, tmp_path / "calibrated")
    assert new.manifest.files[contract.WEIGHTS_FILE] == trained.manifest.files[contract.WEIGHTS_FILE]
    logits = predict_logits(load_model(trained.path), site, np.arange(len(site.labels)))
    temperature, offset = fit_temperature_and_offset(logits, site.labels)
    assert new.manifest.temperature == pytest.approx(temperature, rel=1e-6)
    assert new.manifest.offset == pytest.approx(offset / temperature, rel=1e-6)
    # What the offset is for: the mean probability is the site's share.
    assert new.manifest.point.probability(logits).mean() == pytest.approx(site.labels.mean(), abs=1e-4)
    assert new.manifest.metrics["calibration"]["recall"]["low"] >= new.manifest.recall_target
    # Figures of another threshold do not describe this bundle.
    assert "val" not in new.manifest.metrics
    assert new.manifest.data["calibrated_on"]["digest"] == site.manifest["digest"]
    assert new.model_id != trained.model_id
    assert new.manifest.synthetic


def test_another_prevalence_moves_probabilities_and_no_answer(trained: Bundle, tmp_path: Path) -> None:
    counts = trained.manifest.data["counts"]["by_class"]["val"]
    share = counts["PNEUMONIA"] / sum(counts.values())
    new = for_prevalence(trained.path, 0.1, 1.0, tmp_path / "site")
    logits = np.random.default_rng(0).normal(0, trained.manifest.temperature, (500, 2))
    before, after = (item.manifest.point for item in (trained, new))
    assert (before.answers(logits) == after.answers(logits)).all()
    odds = [p / (1 - p) for p in (before.probability(logits), after.probability(logits))]
    assert odds[1] / odds[0] == pytest.approx((0.1 / 0.9) / (share / (1 - share)))
    assert new.manifest.files[contract.WEIGHTS_FILE] == trained.manifest.files[contract.WEIGHTS_FILE]
    assert "0.1 of the images are PNEUMONIA" in (new.path / contract.CARD_FILE).read_text()
    # There and back, and never above the greatest threshold.
    back = for_prevalence(new.path, share, 1.0, tmp_path / "back").manifest.point
    assert (back.offset, back.threshold) == pytest.approx((before.offset, before.threshold), abs=1e-9)
    assert for_prevalence(trained.path, 0.999, 0.5, tmp_path / "sick").manifest.threshold == 0.5


def test_a_bundle_that_knows_no_share_has_to_see_images(trained: Bundle, tmp_path: Path) -> None:
    data = {key: value for key, value in trained.manifest.data.items() if key != "counts"}
    other = extend_bundle(trained, tmp_path / "other", {}, data=data)
    with pytest.raises(DataError, match="calibrate it with images"):
        for_prevalence(other.path, 0.1, 0.5, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_prevalence_of_a_site_that_its_images_do_not_have(trained: Bundle, tmp_path: Path) -> None:
    site = prepared_phantoms(tmp_path / "site", "data.seed=7")
    config = smoke_config(tmp_path)
    own = calibrate(config, trained.path, site.path, tmp_path / "own").manifest
    moved = calibrate(config, trained.path, site.path, tmp_path / "moved", 0.05).manifest
    share = float(site.labels.mean())
    shift = np.log(0.05 / 0.95) - np.log(share / (1 - share))
    assert moved.offset - own.offset == pytest.approx(shift)
    assert moved.data["prevalence"] == 0.05 and own.data["prevalence"] == pytest.approx(share)


def test_the_card_and_the_converted_forms_are_of_the_new_threshold(
    trained: Bundle, prepared: PreparedData, tmp_path: Path
) -> None:
    config = smoke_config(tmp_path)
    evaluate(config, trained.path, prepared.path, tmp_path / "evaluation")
    old = export_onnx(config, trained.path, tmp_path / "evaluation", prepared.path, tmp_path / "models")
    site = prepared_phantoms(tmp_path / "site", "data.seed=7")
    new = calibrate(config, old.path, site.path, tmp_path / "calibrated")
    card = new.file(contract.CARD_FILE).read_text()
    manifest = new.manifest
    assert card.startswith(f"# {old.manifest.name}-calibrated\n")
    numbers = (manifest.temperature, manifest.offset, manifest.threshold)
    assert "temperature {:.4f}, offset {:.4f}, threshold {:.4f}".format(*numbers) in card
    assert f"digest {site.manifest['digest']}; {len(site.labels)} images" in card
    assert f"| recall (sensitivity) | {manifest.metrics['calibration']['recall']['value']:.4f} |" in card
    assert "on the very images that chose it" in card
    for stale in (f"threshold {old.manifest.threshold:.4f}", "## Test", "test images"):
        assert stale not in card
    assert manifest.metrics["parity"]["onnx"]["label_agreement"] == 1.0
    graph = tmp_path / contract.ONNX_FILE
    model = onnx.load(old.file(contract.ONNX_FILE))
    bias = next(item for item in model.graph.initializer if item.name.endswith("classifier.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32([1, -1]), bias.name))
    onnx.save(model, graph)
    broken = extend_bundle(old, tmp_path / "broken", {contract.ONNX_FILE: graph})
    with pytest.raises(ParityRefused, match=r"model\.onnx disagrees"):
        calibrate(config, broken.path, site.path, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_the_images_of_the_training_are_refused(trained: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="with these very images"):
        calibrate(smoke_config(tmp_path), trained.path, prepared.path, tmp_path / "calibrated")
    assert not (tmp_path / "calibrated").exists()
