"""Figures of a binary classifier, each with an interval from a bootstrap over patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pneumonia import contract

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

METRIC_NAMES = (
    "accuracy", "precision", "recall", "specificity", "f1", "auroc", "ece", "brier", "log_loss", "ppv", "npv"
)  # fmt: skip
ECE_BINS = 10
SURE = 1e-6
"""Probabilities count as at least this far from 0 and 1 where their logarithm is taken."""
PREVALENCE = 0.1
"""Share of PNEUMONIA that ppv and npv are computed for, unless another is given."""


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its 95 % interval; NaN-free: an undefined figure is None."""

    value: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """Plain JSON form."""
        return {"value": self.value, "low": self.low, "high": self.high}


def patient_weights(patients: npt.NDArray[np.str_], samples: int, seed: int) -> Floats:
    """How often each image counts in each bootstrap sample, (samples, N).

    Patients are drawn with replacement and bring all their images along, because images of one patient are not
    independent (Efron and Tibshirani 1993, chapter 8). patients: patient key by image, (N,).
    """
    names, member = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return drawn[:, member].astype(np.float64)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _auroc(labels: Ints, probability: Floats, weights: Floats) -> Floats:
    """Weighted area under the ROC curve per row of weights; ties count half (Mann-Whitney)."""
    order = np.argsort(probability, kind="stable")
    _, tie = np.unique(probability[order], return_inverse=True)
    starts = np.flatnonzero(np.r_[True, np.diff(tie) > 0])
    positive = np.add.reduceat(weights[:, order] * labels[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - labels[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=1)
    return _ratio(wins, positive.sum(axis=1) * negative.sum(axis=1))


def _ece(labels: Ints, probability: Floats, weights: Floats) -> Floats:
    """Expected calibration error of P(PNEUMONIA) over ten equal bins (Naeini et al. 2015), per row of weights."""
    bins = np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gap = np.zeros(len(weights))
    for index in range(ECE_BINS):
        inside = bins == index
        gap += np.abs((weights[:, inside] * (labels[inside] - probability[inside])).sum(axis=1))
    return _ratio(gap, weights.sum(axis=1))


def _logit(probability: Floats) -> Floats:
    bounded = np.clip(probability, SURE, 1 - SURE)
    return np.asarray(np.log(bounded / (1 - bounded)), np.float64)


def calibration_fits(labels: Ints, probability: Floats, weights: Floats) -> dict[str, Floats]:
    """Slope and intercept of the labels' logistic regression on logit(probability), per row of weights (R,).

    labels (N,) 0 or 1; probability (N,) of class 1; weights (R, N). The slope is 1 for a calibrated model, below it for
    one that is too sure. The intercept is fitted with the slope at 1: 0 where the mean probability is the share of
    class 1, above where it is too low (Cox 1958; Van Calster et al. 2019, BMC Medicine 17:230). NaN where there is one
    class alone, or where the two can be told apart without an error, which leaves the slope without an end.
    """
    slope, both = _logistic(labels, _logit(probability), weights, free=True)
    intercept, one = _logistic(labels, _logit(probability), weights, free=False)
    return {"calibration_slope": np.where(both, slope[:, 1], np.nan),
            "calibration_intercept": np.where(one, intercept[:, 0], np.nan)}  # fmt: skip


def _logistic(labels: Ints, x: Floats, weights: Floats, free: bool) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Newton's method for (intercept, slope) by row, the slope at 1 unless it is `free`; and which rows got there."""
    found = np.tile([0.0, 1.0], (len(weights), 1))
    total = weights.sum(axis=1)
    positive = (weights * labels).sum(axis=1)
    mixed = (positive > 0) & (positive < total)
    step = np.full(len(weights), np.inf)
    for _ in range(30):
        mean = 1 / (1 + np.exp(-np.clip(found[:, :1] + found[:, 1:] * x, -500, 500)))
        gap, curve = weights * (labels - mean), weights * mean * (1 - mean)
        g0, h00 = gap.sum(axis=1), curve.sum(axis=1)
        if free:
            g1, h01, h11 = gap @ x, curve @ x, curve @ (x * x)
            scale = h00 * h11 - h01 * h01
            with np.errstate(divide="ignore", invalid="ignore"):
                change = np.stack([(h11 * g0 - h01 * g1) / scale, (h00 * g1 - h01 * g0) / scale], axis=1)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                change = np.stack([g0 / h00, np.zeros_like(g0)], axis=1)
        # A long step from a flat place would overshoot.
        change = np.clip(np.nan_to_num(change, nan=np.inf), -5, 5)
        found = found + change
        step = np.abs(change).max(axis=1)
        if (step[mixed] < 1e-8).all():
            break
    return found, mixed & (step < 1e-6)


def weighted_metrics(
    labels: Ints, probability: Floats, threshold: float, weights: Floats, prevalence: float = PREVALENCE
) -> dict[str, Floats]:
    """Every figure of METRIC_NAMES for each row of weights.

    labels (N,) 0 or 1; probability (N,) of class 1; weights (R, N). Values are (R,) in 0..1 (log_loss from 0 up, in
    nats), NaN where undefined (precision without a positive answer, recall without a positive image). ppv and npv are
    the predictive values among people of whom `prevalence` have pneumonia, from recall and specificity (Altman and
    Bland 1994, BMJ 309:102).
    """
    predicted, actual = probability >= threshold, labels == 1

    def count(mask: npt.NDArray[np.bool_]) -> Floats:
        return np.asarray(weights[:, mask].sum(axis=1), np.float64)

    tp, fp = count(predicted & actual), count(predicted & ~actual)
    fn, tn = count(~predicted & actual), count(~predicted & ~actual)
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    sick, healthy = prevalence, 1 - prevalence
    return {
        "accuracy": _ratio(tp + tn, tp + tn + fp + fn),
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
        "specificity": specificity,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "auroc": _auroc(labels, probability, weights),
        "ece": _ece(labels, probability, weights),
        "brier": _ratio(weights @ (probability - labels) ** 2, weights.sum(axis=1)),
        "log_loss": _ratio(weights @ _surprise(labels, probability), weights.sum(axis=1)),
        "ppv": _ratio(recall * sick, recall * sick + (1 - specificity) * healthy),
        "npv": _ratio(specificity * healthy, specificity * healthy + (1 - recall) * sick),
    }


def _surprise(labels: Ints, probability: Floats) -> Floats:
    bounded = np.clip(probability, SURE, 1 - SURE)
    return np.asarray(-np.log(np.where(labels == 1, bounded, 1 - bounded)), np.float64)


def point_metrics(
    labels: Ints, probability: Floats, threshold: float, prevalence: float = PREVALENCE
) -> dict[str, float]:
    """The figures of METRIC_NAMES on the images as they are; NaN where undefined."""
    found = weighted_metrics(labels, probability, threshold, np.ones((1, len(labels))), prevalence)
    return {name: float(value[0]) for name, value in found.items()}


def metrics_with_intervals(
    labels: Ints,
    probability: Floats,
    threshold: float,
    patients: npt.NDArray[np.str_],
    samples: int = 2000,
    seed: int = 42,
    prevalence: float = PREVALENCE,
) -> dict[str, Interval]:
    """The figures with patient-bootstrap 95 % percentile intervals.

    ECE has none: it is a mean of sizes, so resampling adds noise to every bin, and what it draws lies above the figure.
    A bootstrap of answers that are all right never draws a wrong one and would call that certain. There the end of an
    exact interval stands in its place, with patients for the number of trials.
    """
    points = point_metrics(labels, probability, threshold, prevalence)
    weights = patient_weights(patients, samples, seed)
    resampled = weighted_metrics(labels, probability, threshold, weights, prevalence)
    intervals = {name: _interval(value, resampled[name]) for name, value in points.items()}
    intervals["ece"] = Interval(intervals["ece"].value, None, None)
    return intervals | _of_all_or_none(intervals, labels, probability >= threshold, patients)


def _interval(value: float, drawn: Floats) -> Interval:
    """A figure with the ends of the middle 95 % of what was drawn."""

    def known(number: float) -> float | None:
        return None if np.isnan(number) else round(float(number), 6)

    defined = drawn[~np.isnan(drawn)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return Interval(known(value), known(low), known(high))


def calibration_with_intervals(
    labels: Ints, probability: Floats, patients: npt.NDArray[np.str_], samples: int = 2000, seed: int = 42
) -> dict[str, Interval]:
    """What `calibration_fits` finds, with intervals as in `metrics_with_intervals`; no threshold takes part in it."""
    points = calibration_fits(labels, probability, np.ones((1, len(labels))))
    drawn = calibration_fits(labels, probability, patient_weights(patients, samples, seed))
    return {name: _interval(float(value[0]), drawn[name]) for name, value in points.items()}


def lowest_of_all_right(trials: int) -> float:
    """Lower end of the exact 95 % interval of `trials` right answers of `trials` (Clopper and Pearson 1934)."""
    return float(0.025 ** (1 / trials))


def _of_all_or_none(
    intervals: dict[str, Interval], labels: Ints, predicted: npt.NDArray[np.bool_], patients: npt.NDArray[np.str_]
) -> dict[str, Interval]:
    """Exact intervals of the shares that are 0 or 1 in every sample."""
    counted = {"accuracy": labels >= 0, "precision": predicted, "recall": labels == 1, "specificity": labels == 0}
    found = {}
    for name, images in counted.items():
        value = intervals[name].value
        trials = len(np.unique(patients[images]))
        if value in (0, 1) and intervals[name] == Interval(value, value, value) and trials:
            reach = round(lowest_of_all_right(trials), 6)
            found[name] = Interval(1, reach, 1) if value else Interval(0, 0, round(1 - reach, 6))
    low = [found.get(name, intervals[name]).low for name in ("precision", "recall")]
    if intervals["f1"] == Interval(1, 1, 1) and low[0] and low[1]:
        found["f1"] = Interval(1, round(2 * low[0] * low[1] / (low[0] + low[1]), 6), 1)
    return found


def confusion(labels: Ints, probability: Floats, threshold: float) -> list[list[int]]:
    """[[TN, FP], [FN, TP]]: rows are the truth, columns the answer, in the order of contract.LABELS."""
    predicted = (probability >= threshold).astype(np.int64)
    return [[int(((labels == truth) & (predicted == answer)).sum()) for answer in (0, 1)] for truth in (0, 1)]


def discordant(labels: Ints, one: tuple[Floats, float], other: tuple[Floats, float]) -> dict[str, dict[str, int]]:
    """How many images of each class only `one` answers rightly, and how many only `other`.

    Each is (probability (N,), threshold). By label: {"only_this", "only_champion"}. Two models with the same recall may
    miss other patients each.
    """
    right = [(probability >= threshold) == (labels == 1) for probability, threshold in (one, other)]
    return {
        name: {
            "only_this": int((right[0] & ~right[1] & (labels == value)).sum()),
            "only_champion": int((right[1] & ~right[0] & (labels == value)).sum()),
        }
        for value, name in enumerate(contract.LABELS)
    }


def paired_difference(
    labels: Ints,
    one: tuple[Floats, float],
    other: tuple[Floats, float],
    patients: npt.NDArray[np.str_],
    samples: int = 2000,
    seed: int = 42,
) -> dict[str, Interval]:
    """Figures of `one` minus those of `other` on the same images, each as (probability (N,), threshold).

    Both see the same bootstrap patients, so that what is hard in a sample is hard for both and cancels.
    """
    weights = patient_weights(patients, samples, seed)
    points = [point_metrics(labels, *form) for form in (one, other)]
    drawn = [weighted_metrics(labels, *form, weights) for form in (one, other)]
    found = {}
    for name in METRIC_NAMES:
        gap = drawn[0][name] - drawn[1][name]
        value = points[0][name] - points[1][name]
        if np.isnan(value) or np.isnan(gap).all():
            found[name] = Interval(None, None, None)
            continue
        low, high = np.nanpercentile(gap, [2.5, 97.5])
        found[name] = Interval(round(value, 6), round(float(low), 6), round(float(high), 6))
    return found
