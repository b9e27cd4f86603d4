"""Temperature and threshold, both chosen on validation alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.core.metrics import Floats, Ints, lowest_of_all_right, patient_weights
from pneumonia.errors import GateRefused

TEMPERATURE_RANGE = (0.05, 20.0)


def fit_temperature(logits: npt.NDArray[np.floating[Any]], labels: Ints) -> float:
    """The temperature T > 0 that minimises the negative log-likelihood of softmax(logits / T).

    logits (N, 2), labels (N,). Guo et al. 2017, arXiv:1706.04599.
    """
    margin = _margin(logits)
    return _search(lambda temperature: _loss(margin / temperature, labels))


def fit_temperature_and_offset(logits: npt.NDArray[np.floating[Any]], labels: Ints) -> tuple[float, float]:
    """The temperature T and the offset b of the PNEUMONIA logit that together minimise the negative log-likelihood.

    logits (N, 2), labels (N,) with both classes. This is Platt's scaling (1999). A model that was trained on balanced
    classes is off by more than one factor can mend: by the class ratio, and by what training made of the copies.
    """
    margin = _margin(logits)
    temperature = _search(lambda value: _loss((margin + _offset(margin, labels, value)) / value, labels))
    return temperature, _offset(margin, labels, temperature)


def _margin(logits: npt.NDArray[np.floating[Any]]) -> Floats:
    return np.asarray(logits[:, contract.PNEUMONIA].astype(np.float64) - logits[:, contract.NORMAL], np.float64)


def _loss(scaled: Floats, labels: Ints) -> float:
    """Mean negative log-likelihood of P(PNEUMONIA) = sigmoid(scaled)."""
    return float(np.logaddexp(0, np.where(labels == contract.PNEUMONIA, -scaled, scaled)).mean())


def _offset(margin: Floats, labels: Ints, temperature: float) -> float:
    """At this temperature the likelihood is greatest where the mean probability is the share of PNEUMONIA.

    That mean rises with the offset, so bisection finds it; at both ends every image is one class.
    """
    share = float((labels == contract.PNEUMONIA).mean())
    reach = float(np.abs(margin).max()) + 40 * temperature
    low, high = -reach, reach
    for _ in range(60):
        middle = (low + high) / 2
        mean = float((1 / (1 + np.exp(-np.clip((margin + middle) / temperature, -500, 500)))).mean())
        low, high = (middle, high) if mean < share else (low, middle)
    return (low + high) / 2


def _search(loss: Callable[[float], float]) -> float:
    """The temperature in TEMPERATURE_RANGE of the least loss.

    The losses above are convex in 1 / T, and a golden-section search over log T needs no derivative and cannot diverge.
    """
    low, high = np.log(TEMPERATURE_RANGE[0]), np.log(TEMPERATURE_RANGE[1])
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(np.exp(left)) < loss(np.exp(right)) else (left, high)
    return float(np.exp((low + high) / 2))


def shift_of(prevalence: float, share: float) -> float:
    """What to add to the log-odds of a model calibrated where `share` of images are PNEUMONIA, where `prevalence` are.

    Both above 0 and below 1. Saerens et al. 2002, Neural Computation 14:21.
    """
    return float(np.log(prevalence / (1 - prevalence)) - np.log(share / (1 - share)))


def moved(probability: float, shift: float) -> float:
    """A probability whose log-odds are moved by `shift`; 0 and 1 stay."""
    if probability in (0, 1):
        return probability
    return float(1 / (1 + (1 - probability) / probability * np.exp(-shift)))


def too_few_to_show(labels: Ints, patients: npt.NDArray[np.str_], recall_target: float) -> str:
    """Why a recall of `recall_target` cannot be shown on these patients even if every answer is right; empty if it can.

    labels (N,), patients (N,). A patient is a trial of `lowest_of_all_right`.
    """
    count = len(np.unique(patients[labels == contract.PNEUMONIA]))
    reach = lowest_of_all_right(count) if count else 0.0
    if reach >= recall_target:
        return ""
    needed = int(np.ceil(np.log(0.025) / np.log(recall_target)))
    return (
        f"{count} PNEUMONIA patients of validation cannot show a recall of {recall_target:g}: if all are right, the "
        f"lower 95 % end is {reach:.3f}; {needed} could"
    )


def choose_threshold(
    labels: Ints,
    probability: Floats,
    patients: npt.NDArray[np.str_],
    recall_target: float,
    samples: int = 2000,
    seed: int = 42,
    most: float = 1.0,
) -> float:
    """The highest threshold up to `most` whose patient-bootstrap lower 95 % bound of recall meets `recall_target`.

    labels (N,), probability (N,) of PNEUMONIA, patients (N,), all of the validation split. The result lies half way
    between the lowest accepted probability and the next one below it, so that rounding in another runtime does not
    flip an image that sits on it. Raises GateRefused where no threshold can meet the target.
    """
    weights = patient_weights(patients, samples, seed)
    positive = labels == contract.PNEUMONIA
    order = np.argsort(-probability[positive], kind="stable")
    scores = probability[positive][order]  # descending
    counted = weights[:, positive][:, order]
    total = counted.sum(axis=1, keepdims=True)
    if not len(scores) or not (total > 0).all():
        raise GateRefused([f"{int(positive.sum())} PNEUMONIA images in validation: too few to choose a threshold"])
    # Column i is the recall of every bootstrap sample with the threshold at scores[i].
    recall = np.cumsum(counted, axis=1) / total
    # Images that share a score are accepted together, so a tie takes the recall of its last member.
    last_of_tie = np.searchsorted(-scores, -scores, side="right") - 1
    bound = np.percentile(recall, 2.5, axis=0)[last_of_tie]
    meets = np.flatnonzero(bound >= recall_target)
    if not len(meets):
        raise GateRefused([f"no threshold reaches a recall of {recall_target:g} on validation with 95 % confidence"])
    accepted = scores[meets[0]]
    below = probability[probability < accepted]
    return min(most, float((accepted + below.max()) / 2) if len(below) else float(accepted / 2))
