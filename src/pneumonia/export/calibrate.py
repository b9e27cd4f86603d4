"""Temperature and threshold for a site of its own, from its labelled images, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.config.schema import Config
from pneumonia.core.calibration import choose_threshold, fit_temperature
from pneumonia.core.metrics import metrics_with_intervals
from pneumonia.core.prediction import pneumonia_probability
from pneumonia.core.preprocess import Preprocessing
from pneumonia.data.prepare import load_prepared
from pneumonia.errors import DataError
from pneumonia.files import check_replaceable
from pneumonia.training.dataset import predict_logits


def calibrate(config: Config, bundle: Path, prepared: Path, out: Path) -> Bundle:
    """Write the bundle `out`: that at `bundle` with temperature and threshold refitted on every image of `prepared`.

    The weights stay. Figures of the old test do not hold for the new threshold and are dropped; those of the refit are
    under metrics["calibration"], and are of the images that chose it. Raises DataError where the images are those the
    model was trained on or were prepared otherwise, GateRefused where no threshold meets evaluation.recall_target.
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
    return extend_bundle(
        opened,
        out,
        {},
        name=f"{manifest.name.removesuffix('-calibrated')}-calibrated",
        temperature=temperature,
        threshold=threshold,
        recall_target=config.evaluation.recall_target,
        metrics={"calibration": {name: interval.to_json() for name, interval in figures.items()}},
        data={**manifest.data, "calibrated_on": {key: data.manifest[key] for key in keys},
              "synthetic": manifest.synthetic or data.manifest["synthetic"]},
    )  # fmt: skip
