"""What Kubeflow's user interface shows of a step: figures, curves, tables and metadata of its artifacts."""

from __future__ import annotations

import csv
import html
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.export.parity import Parity
from pneumonia.files import write_text

BASELINE_FILE = "baseline.json"
"""In an evaluation: the figures of a logistic regression to compare with."""
CURVE_POINTS = 200
"""At most this many points of a ROC curve: they are stored as metadata, not as a file."""


def log_figures(metrics: Any, figures: Mapping[str, Mapping[str, Any]], prefix: str = "test") -> None:
    """Give a kfp Metrics artifact the figures {name: {"value": ...}} of a test split; undefined ones are left out."""
    for name, figure in figures.items():
        if figure["value"] is not None:
            metrics.log_metric(f"{prefix}_{name}", figure["value"])


def show_evaluation(evaluation: Path, metrics: Any, curves: Any, report: Path) -> None:
    """Figures to a kfp Metrics, ROC curve and confusion matrix to a kfp ClassificationMetrics, the report to a file."""
    found = json.loads((evaluation / contract.METRICS_FILE).read_text("utf-8"))
    log_figures(metrics, found["test"])
    if (baseline := evaluation / BASELINE_FILE).is_file():
        log_figures(metrics, json.loads(baseline.read_text("utf-8"))["test"], "baseline_test")
    log_figures(metrics, found.get("stress", {}).get("worst", {}), "stress_worst")
    shutil.copyfile(evaluation / contract.REPORT_FILE, report)
    with (evaluation / contract.PREDICTIONS_FILE).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    matrix = [[sum(row["label"] == truth and row["prediction"] == said for row in rows) for said in contract.LABELS]
              for truth in contract.LABELS]  # fmt: skip
    curves.log_confusion_matrix(list(contract.LABELS), matrix)
    positives = [row["label"] == contract.LABELS[contract.PNEUMONIA] for row in rows]
    curves.log_roc_curve(*_roc_curve(positives, [float(row["probability"]) for row in rows]))


def _roc_curve(positives: list[bool], scores: list[float]) -> tuple[list[float], list[float], list[float]]:
    """False and true positive rates, each 0..1 ascending, with their thresholds."""
    from sklearn.metrics import roc_curve

    rates, recalls, thresholds = roc_curve(positives, scores)
    step = math.ceil(len(rates) / CURVE_POINTS)
    chosen = sorted({*range(0, len(rates), step), len(rates) - 1})
    # The first threshold is infinite, which JSON does not know; nothing scores above 1.
    capped = [min(float(thresholds[i]), 1.0) for i in chosen]
    return [float(rates[i]) for i in chosen], [float(recalls[i]) for i in chosen], capped


def show_bundle(bundle: Bundle, model: Any) -> None:
    """Give a kfp Model artifact what tells one bundle from another."""
    manifest = bundle.manifest
    model.metadata.update(
        model_id=bundle.model_id,
        synthetic=manifest.synthetic,
        temperature=manifest.temperature,
        threshold=manifest.threshold,
        data_digest=str(manifest.data.get("digest", "")),
        files=", ".join(sorted(manifest.files)),
    )


def show_export(parity: Mapping[str, Parity], model: Any, metrics: Any, report: Path) -> None:
    """Give a kfp Model artifact its bundle's data, and what `show_parity` shows."""
    bundle = open_bundle(Path(model.path))
    show_bundle(bundle, model)
    show_parity(bundle.model_id, parity, metrics, report)


def show_parity(model_id: str, parity: Mapping[str, Parity], metrics: Any, report: Path) -> None:
    """The forms' parity with PyTorch as a kfp Metrics artifact and as an HTML table."""
    rows = []
    for form, found in parity.items():
        metrics.log_metric(f"{form}_label_agreement", found.label_agreement)
        metrics.log_metric(f"{form}_max_gap", found.max_gap)
        cells = (form, found.images, f"{found.label_agreement:.4f}", f"{found.max_gap:.2e}")
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>form</th><th>images</th><th>label agreement</th><th>largest difference of P(PNEUMONIA)</th></tr>"
    title = html.escape(model_id)
    write_text(report, f"<!doctype html><title>{title}</title><h1>{title}</h1><table>{head}{''.join(rows)}</table>\n")
