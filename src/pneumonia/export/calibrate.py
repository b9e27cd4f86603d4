"""The operating point for a site of its own, from its labelled images or its share of pneumonia, without training."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia import contract
from pneumonia.bundle import Bundle, Manifest, open_bundle, write_bundle
from pneumonia.config.schema import Config
from pneumonia.core.calibration import choose_threshold, fit_temperature_and_offset, moved, shift_of
from pneumonia.core.metrics import metrics_with_intervals
from pneumonia.core.prediction import OperatingPoint
from pneumonia.core.preprocess import Preprocessing, normalize
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.errors import DataError
from pneumonia.evaluation.card import calibration_card
from pneumonia.export.forms import FORMS
from pneumonia.export.parity import compare, require
from pneumonia.export.spread import require_both_answers, spread
from pneumonia.files import check_replaceable, write_text
from pneumonia.training.dataset import predict_logits

PARITY_IMAGES = 200


def calibrate(config: Config, bundle: Path, prepared: Path, out: Path, prevalence: float | None = None) -> Bundle:
    """Write the bundle `out`: that at `bundle` with temperature, offset and threshold refitted on all of `prepared`.

    The weights stay. prevalence: share of pneumonia where the model will be used, where that is not the share of these
    images; probabilities and threshold move to it, answers stay. Figures of the old test do not hold for the new
    threshold and are dropped; those of the refit are under metrics["calibration"] and in a new model card, and are of
    the images that chose it. Every converted form that runs on this machine's CPU has to agree with PyTorch at the new
    threshold; an engine, which cannot be asked here, is left out. Raises DataError where the images are those the model
    was trained on or were prepared otherwise, GateRefused where no threshold meets evaluation.recall_target,
    ParityRefused where a form disagrees.
    """
    from pneumonia.architecture import load_model

    check_replaceable(out, contract.BUNDLE_MANIFEST)
    opened, data = open_bundle(bundle), load_prepared(prepared)
    if opened.manifest.data["digest"] == data.manifest["digest"]:
        digest = opened.manifest.data["digest"][:12]
        raise DataError(
            f"{opened.manifest.name} was trained with these very images (data digest {digest}...); calibrate on images "
            "it has not seen"
        )
    if Preprocessing.from_json(data.manifest["preprocessing"]) != opened.manifest.preprocessing:
        raise DataError(f"{prepared}: prepared otherwise than this model's training images; prepare it again")
    logits = predict_logits(load_model(bundle), data, np.arange(len(data.labels)), title="calibration")
    evaluation = config.evaluation
    temperature, added = fit_temperature_and_offset(logits, data.labels)
    fitted = OperatingPoint(temperature, 0.5, added / temperature, evaluation.sure)
    probability = fitted.probability(logits)
    options = (evaluation.bootstrap_samples, evaluation.seed)
    threshold = choose_threshold(
        data.labels, probability, data.patients, evaluation.recall_target, *options, most=evaluation.max_threshold
    )
    figures = metrics_with_intervals(
        data.labels, probability, threshold, data.patients, *options, evaluation.prevalence
    )
    manifest, share = opened.manifest, float((data.labels == contract.PNEUMONIA).mean())
    fitted = replace(fitted, threshold=threshold)
    point = fitted if prevalence is None else at_prevalence(fitted, prevalence, share, evaluation.max_threshold)
    keys = ("digest", "source", "synthetic", "patients", "counts")
    changed = replace(
        manifest,
        name=f"{manifest.name.removesuffix('-calibrated')}-calibrated",
        **_of(point),
        recall_target=config.evaluation.recall_target,
        metrics={
            "calibration": {name: interval.to_json() for name, interval in figures.items()},
            "parity": _parity(opened, data, logits, point),
        },
        data={**manifest.data, "calibrated_on": {key: data.manifest[key] for key in keys},
              "prevalence": share if prevalence is None else prevalence,
              "synthetic": manifest.synthetic or data.manifest["synthetic"]},
    )  # fmt: skip
    return _write(opened, changed, out)


def for_prevalence(bundle: Path, prevalence: float, most: float, out: Path) -> Bundle:
    """Write the bundle `out`: that at `bundle` with its probabilities moved to a place with this share of pneumonia.

    No image is needed. The share that the probabilities were fitted for is known from the bundle. The threshold moves
    with them, so answers stay, but for what `most`, the greatest threshold, turns to PNEUMONIA. Raises DataError where
    the bundle does not know its share.
    """
    check_replaceable(out, contract.BUNDLE_MANIFEST)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    share = prevalence_of(manifest)
    point = at_prevalence(manifest.point, prevalence, share, most)
    metrics = {name: found for name, found in manifest.metrics.items() if name == "parity"}
    name = f"{manifest.name.removesuffix('-calibrated')}-calibrated"
    data = {**manifest.data, "prevalence": prevalence, "prevalence_before": share}
    return _write(opened, replace(manifest, name=name, metrics=metrics, data=data, **_of(point)), out)


def at_prevalence(point: OperatingPoint, prevalence: float, share: float, most: float) -> OperatingPoint:
    """The point that gives the same answers where `prevalence` of images are PNEUMONIA in place of `share`."""
    shift = shift_of(prevalence, share)
    return replace(point, offset=point.offset + shift, threshold=min(most, moved(point.threshold, shift)))


def prevalence_of(manifest: Manifest) -> float:
    """The share of PNEUMONIA that a bundle's probabilities are for. Raises DataError where nothing says it."""
    found = manifest.data.get("prevalence")
    if found is None:
        # Validation is what a training fits its probabilities to.
        counts = manifest.data.get("counts", {}).get("by_class", {}).get("val", {})
        found = counts[contract.LABELS[contract.PNEUMONIA]] / sum(counts.values()) if any(counts.values()) else 0
    if not 0 < float(found) < 1:
        raise DataError(
            f"{manifest.name}: does not say how many of its images were PNEUMONIA; calibrate it with images"
        )
    return float(found)


def _of(point: OperatingPoint) -> dict[str, Any]:
    return asdict(point)


def _parity(bundle: Bundle, data: PreparedData, logits: Any, point: OperatingPoint) -> dict[str, Any]:
    """Agreement of each form with PyTorch's `logits` (N, 2), by name of the form. Raises ParityRefused."""
    rows = spread(data, np.arange(len(logits)), PARITY_IMAGES, point.answers(logits))
    require_both_answers(point.answers(logits[rows]), "images")
    found = {}
    for name, form in FORMS.items():
        if bundle.has(form.file) and form.file != contract.ENGINE_FILE:
            pixel_values = normalize(np.asarray(data.pixels[rows]), bundle.manifest.preprocessing)
            parity = compare(logits[rows], form.answer(bundle, form.file, pixel_values), point)
            found[name] = require(parity, form.file, form.min_agreement, form.max_gap).to_json()
    return found


def _write(opened: Bundle, changed: Manifest, out: Path) -> Bundle:
    """The files of `opened` that hold for the new threshold, and a card of its own."""
    if opened.has(contract.ENGINE_FILE):
        print(f"calibrate: {contract.ENGINE_FILE} is left out, it is not proven at this threshold", file=sys.stderr)
    kept = {name: opened.path / name for name in opened.manifest.files if name != contract.ENGINE_FILE}
    with tempfile.TemporaryDirectory(prefix="card.") as temporary:
        card = Path(temporary) / contract.CARD_FILE
        write_text(card, calibration_card(changed))
        return write_bundle(out, changed, {**kept, contract.CARD_FILE: card})
