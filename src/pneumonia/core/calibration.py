"""Temperature and threshold, both chosen on validation alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.core.metrics import Floats, Ints, patient_weights
from pneumonia.errors import GateRefused

TEMPERATURE_RANGE = (0.05, 20.0)


def fit_temperature(logits: npt.NDArray[np.floating[Any]], labels: Ints) -> float:
    """The temperature T > 0 that minimises the negative log-likelihood of softmax(logits / T).

    logits (N, 2), labels (N,). Guo et al. 2017, arXiv:1706.04599. The loss is convex in 1 / T; a golden-section
    search over log T inside TEMPERATURE_RANGE needs no derivative and cannot diverge.
    """
    margin = logits[:, contract.PNEUMONIA].astype(np.float64) - logits[:, contract.NORMAL]
    signed = np.where(labels == contract.PNEUMONIA, margin, -margin)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_temperature)).mean())

    low, high = np.log(TEMPERATURE_RANGE[0]), np.log(TEMPERATURE_RANGE[1])
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def choose_threshold(
    labels: Ints,
    probability: Floats,
    patients: npt.NDArray[np.str_],
    recall_target: float,
    samples: int = 2000,
    seed: int = 42,
) -> float:
    """The highest threshold whose patient-bootstrap lower 95 % bound of recall meets `recall_target`.

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
    return float((accepted + below.max()) / 2) if len(below) else float(accepted / 2)
