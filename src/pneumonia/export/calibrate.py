"""Temperature and threshold for a site of its own, from its labelled images, without training."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia import contract
from pneumonia.bundle import Bundle, Manifest, open_bundle, write_bundle
from pneumonia.config.schema import Config
from pneumonia.core.calibration import choose_threshold, fit_temperature
from pneumonia.core.metrics import metrics_with_intervals
from pneumonia.core.prediction import pneumonia_probability
from pneumonia.core.preprocess import Preprocessing, normalize
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.errors import DataError
from pneumonia.evaluation.card import calibration_card
from pneumonia.export.forms import FORMS
from pneumonia.export.parity import compare, require
from pneumonia.export.spread import answers_of, require_both_answers, spread
from pneumonia.files import check_replaceable, write_text
from pneumonia.training.dataset import predict_logits

PARITY_IMAGES = 200


def calibrate(config: Config, bundle: Path, prepared: Path, out: Path) -> Bundle:
    """Write the bundle `out`: that at `bundle` with temperature and threshold refitted on every image of `prepared`.

    The weights stay. Figures of the old test do not hold for the new threshold and are dropped; those of the refit are
    under metrics["calibration"] and in a new model card, and are of the images that chose it. Every converted form
    that runs on this machine's CPU has to agree with PyTorch at the new threshold; an engine, which cannot be asked
    here, is left out. Raises DataError where the images are those the model was trained on or were prepared otherwise,
    GateRefused where no threshold meets evaluation.recall_target, ParityRefused where a form disagrees.
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
    temperature = fit_temperature(logits, data.labels)
    probability = pneumonia_probability(logits, temperature)
    options = (config.evaluation.bootstrap_samples, config.evaluation.seed)
    threshold = choose_threshold(data.labels, probability, data.patients, config.evaluation.recall_target, *options)
    figures = metrics_with_intervals(
        data.labels, probability, threshold, data.patients, *options, config.evaluation.prevalence
    )
    manifest = opened.manifest
    keys = ("digest", "source", "synthetic", "patients", "counts")
    changed = replace(
        manifest,
        name=f"{manifest.name.removesuffix('-calibrated')}-calibrated",
        temperature=temperature,
        threshold=threshold,
        recall_target=config.evaluation.recall_target,
        metrics={
            "calibration": {name: interval.to_json() for name, interval in figures.items()},
            "parity": _parity(opened, data, logits, temperature, threshold),
        },
        data={**manifest.data, "calibrated_on": {key: data.manifest[key] for key in keys},
              "synthetic": manifest.synthetic or data.manifest["synthetic"]},
    )  # fmt: skip
    return _write(opened, changed, out)


def _parity(bundle: Bundle, data: PreparedData, logits: Any, temperature: float, threshold: float) -> dict[str, Any]:
    """Agreement of each form with PyTorch's `logits` (N, 2), by name of the form. Raises ParityRefused."""
    rows = spread(data, np.arange(len(logits)), PARITY_IMAGES, answers_of(logits, temperature, threshold))
    require_both_answers(answers_of(logits[rows], temperature, threshold), "images")
    found = {}
    for name, form in FORMS.items():
        if bundle.has(form.file) and form.file != contract.ENGINE_FILE:
            pixel_values = normalize(np.asarray(data.pixels[rows]), bundle.manifest.preprocessing)
            parity = compare(logits[rows], form.answer(bundle, form.file, pixel_values), temperature, threshold)
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
