"""ROC, precision-recall, calibration and confusion plots of an evaluation, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from pneumonia import contract
from pneumonia.core.metrics import ECE_BINS, confusion


def draw_plots(labels: Any, probability: Any, threshold: float) -> dict[str, bytes]:
    """{name: PNG} of every plot; labels int64 (N,), probability float64 (N,) of PNEUMONIA, N >= 1.

    The served threshold is marked where it means something.
    """
    from matplotlib.figure import Figure

    drawn = {}
    for name, draw in _PLOTS.items():
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        draw(figure.subplots(), labels, probability, threshold)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110)
        drawn[name] = stream.getvalue()
    return drawn


def _ranked(labels: Any, probability: Any, threshold: float) -> tuple[Any, Any, int]:
    """True and false positives when the answer turns PNEUMONIA after each rank, and the rank of the threshold."""
    order = np.argsort(-probability, kind="stable")
    return np.cumsum(labels[order]), np.cumsum(1 - labels[order]), int((probability >= threshold).sum()) - 1


def _roc(axes: Any, labels: Any, probability: Any, threshold: float) -> None:
    tp, fp, chosen = _ranked(labels, probability, threshold)
    recall, false_alarms = tp / max(tp[-1], 1), fp / max(fp[-1], 1)
    axes.plot(np.r_[0, false_alarms], np.r_[0, recall])
    if chosen >= 0:
        axes.plot(false_alarms[chosen], recall[chosen], "o", label="served threshold")
        axes.legend(loc="lower right")
    axes.set(xlabel="1 - specificity", ylabel="recall", title="ROC")


def _precision_recall(axes: Any, labels: Any, probability: Any, threshold: float) -> None:
    tp, _, chosen = _ranked(labels, probability, threshold)
    recall, precision = tp / max(tp[-1], 1), tp / np.arange(1, len(tp) + 1)
    axes.plot(recall, precision)
    if chosen >= 0:
        axes.plot(recall[chosen], precision[chosen], "o", label="served threshold")
    axes.set(xlabel="recall", ylabel="precision", title="Precision and recall", ylim=(0, 1.02))


def _calibration(axes: Any, labels: Any, probability: Any, threshold: float) -> None:
    bins = np.minimum((probability * ECE_BINS).astype(int), ECE_BINS - 1)
    filled = [bins == index for index in range(ECE_BINS) if (bins == index).any()]
    axes.plot([0, 1], [0, 1], linestyle=":", color="gray")
    axes.plot([probability[inside].mean() for inside in filled], [labels[inside].mean() for inside in filled], "o-")
    axes.axvline(threshold, linestyle="--", linewidth=0.8, color="gray")
    axes.set(xlabel="mean P(PNEUMONIA)", ylabel="share that has pneumonia", title="Calibration")


def _confusion(axes: Any, labels: Any, probability: Any, threshold: float) -> None:
    counts = np.array(confusion(labels, probability, threshold))
    axes.imshow(counts / counts.sum(axis=1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    for truth, answer in np.ndindex(2, 2):
        axes.text(answer, truth, str(counts[truth, answer]), ha="center", va="center", color="black", size=14)
    axes.set(xticks=[0, 1], yticks=[0, 1], xticklabels=contract.LABELS, yticklabels=contract.LABELS)
    axes.set(xlabel="answered", ylabel="is", title="Confusion")


_PLOTS: dict[str, Callable[[Any, Any, Any, float], None]] = {
    "roc": _roc,
    "precision_recall": _precision_recall,
    "calibration": _calibration,
    "confusion": _confusion,
}
