"""A bundle's figures on the test split, and the gate that reads them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.config.schema import Config
from pneumonia.core.gate import refusals
from pneumonia.core.metrics import confusion, metrics_with_intervals, point_metrics
from pneumonia.core.prediction import decide, pneumonia_probability
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.errors import DataError, GateRefused
from pneumonia.evaluation.report import write_report
from pneumonia.files import replace_directory, write_json, write_text

MIN_SUBGROUP = 10
"""Subgroups with fewer test images get no figures of their own: an interval would span almost everything."""


def evaluate(config: Config, bundle: Path, prepared: Path, out: Path) -> dict[str, Any]:
    """Score the test split once and write `out`/{metrics.json, predictions.csv, report.html}; returns the metrics.

    Temperature and threshold are the bundle's. Raises DataError where the bundle was trained on another data set than
    `prepared`, because its test images could then have been training images.
    """
    opened, data = open_bundle(bundle), load_prepared(prepared)
    if opened.manifest.data["digest"] != data.manifest["digest"]:
        raise DataError(
            f"{prepared}: data digest {data.manifest['digest'][:12]}..., the bundle was trained on "
            f"{opened.manifest.data['digest'][:12]}...; evaluate on the data set that it was trained with"
        )
    # torch is heavy, so it stays out of the module and of everything that only reads figures.
    from pneumonia.architecture import load_model
    from pneumonia.training.dataset import predict_logits

    rows = data.indices("test")
    logits = predict_logits(load_model(bundle), data, rows, title="test")
    probability = pneumonia_probability(logits, opened.manifest.temperature)
    metrics = _metrics(config, opened, data, rows, probability)
    with replace_directory(out) as building:
        write_json(building / contract.METRICS_FILE, metrics)
        write_text(building / contract.PREDICTIONS_FILE, _predictions_csv(data, rows, logits, probability, opened))
        write_report(building / contract.REPORT_FILE, metrics, data.labels[rows], probability)
    return metrics


def _metrics(config: Config, bundle: Bundle, data: PreparedData, rows: Any, probability: Any) -> dict[str, Any]:
    manifest = bundle.manifest
    labels, patients = data.labels[rows], data.patients[rows]
    options = (config.evaluation.bootstrap_samples, config.evaluation.seed)

    def intervals(threshold: float) -> dict[str, Any]:
        found = metrics_with_intervals(labels, probability, threshold, patients, *options)
        return {name: interval.to_json() for name, interval in found.items()}

    return {
        "model": manifest.name,
        "synthetic": manifest.synthetic,
        "patients": manifest.data["patients"],
        "split": manifest.data["split"],
        "data_digest": manifest.data["digest"],
        "images": len(rows),
        "images_by_label": {label: int((labels == index).sum()) for index, label in enumerate(contract.LABELS)},
        "patients_count": len(np.unique(patients)),
        "temperature": manifest.temperature,
        "threshold": manifest.threshold,
        "recall_target": manifest.recall_target,
        "test": intervals(manifest.threshold),
        "test_at_half": intervals(0.5),
        "confusion": confusion(labels, probability, manifest.threshold),
        "subgroups": _subgroups(data, rows, probability, manifest.threshold),
        "validation": dict(manifest.metrics["val"]),
    }


def _subgroups(data: PreparedData, rows: Any, probability: Any, threshold: float) -> dict[str, Any]:
    """Images and share answered rightly, by the subgroup that the file name tells (bacteria, virus, ...)."""
    groups = np.asarray(data.index["group"])[rows]
    found = {}
    for group in np.unique(groups):
        inside = groups == group
        if inside.sum() >= MIN_SUBGROUP:
            figures = point_metrics(data.labels[rows][inside], probability[inside], threshold)
            found[str(group)] = {"images": int(inside.sum()), "accuracy": round(figures["accuracy"], 6)}
    return found


def _predictions_csv(data: PreparedData, rows: Any, logits: Any, probability: Any, bundle: Bundle) -> str:
    """One line a test image: what it is, what was answered."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "path", "label", "logit_normal", "logit_pneumonia", "probability", "prediction"])
    answers = decide(probability, bundle.manifest.threshold)
    for row, pair, p, answer in zip(rows.tolist(), logits.tolist(), probability.tolist(), answers, strict=True):
        label = contract.LABELS[data.labels[row]]
        writer.writerow([row, data.index["path"][row], label, *pair, f"{p:.6f}", contract.LABELS[answer]])
    return text.getvalue()


def read_metrics(evaluation: Path) -> dict[str, Any]:
    """What `evaluate` wrote. Raises DataError where `evaluation` is not its output."""
    try:
        return dict(json.loads((evaluation / contract.METRICS_FILE).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{evaluation}: no readable {contract.METRICS_FILE} ({error}); run `pneumoctl evaluate`"
        ) from error


def gate(config: Config, evaluation: Path) -> dict[str, Any]:
    """Compare test figures with the least ones of `config.gate`; returns them. Raises GateRefused with every reason."""
    metrics = read_metrics(evaluation)
    least = {name: getattr(config.gate, name) for name in ("accuracy", "precision", "recall", "f1")}
    if reasons := refusals(metrics["test"], least):
        raise GateRefused(reasons)
    return {name: {"value": metrics["test"][name]["value"], "least": bound} for name, bound in least.items()}
