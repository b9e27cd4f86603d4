"""Logits to an answer: calibrated probability, decision, confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.errors import NoAnswer


@dataclass(frozen=True)
class Prediction:
    """One answer.

    label: NORMAL or PNEUMONIA. probability: calibrated P(PNEUMONIA), 0..1. confidence: calibrated probability of
    `label`, 0..1; below .5 where the threshold puts the decision away from .5. threshold: P(PNEUMONIA) at and above
    which the answer is PNEUMONIA. model_id: the bundle's name and digest.
    """

    label: str
    confidence: float
    probability: float
    threshold: float
    model_id: str


def pneumonia_probability(logits: npt.NDArray[np.floating[Any]], temperature: float) -> npt.NDArray[np.float64]:
    """Logits (B, 2) -> calibrated P(PNEUMONIA) (B,), the softmax of logits / temperature, in float64."""
    margin = (logits[:, contract.NORMAL].astype(np.float64) - logits[:, contract.PNEUMONIA]) / temperature
    # Softmax of two classes is a logistic of the margin; the clip keeps exp finite and changes nothing visible.
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(margin, -700, 700))))


def decide(probability: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.int64]:
    """P(PNEUMONIA) (B,) -> class index (B,): 1 at and above the threshold."""
    return (probability >= threshold).astype(np.int64)


def predictions(
    logits: npt.NDArray[np.floating[Any]], temperature: float, threshold: float, model_id: str
) -> list[Prediction]:
    """Logits (B, 2) -> one Prediction an image, in order.

    Raises NoAnswer, naming the first image whose logits are not finite: NaN is below every threshold, and infinity
    would be certain.
    """
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        bad = int(finite.argmin())
        raise NoAnswer(
            f"image {bad}: the {contract.NOT_FINITE} ({', '.join(map(str, logits[bad]))}), so there is no answer, "
            "such as where float16 overflows; ask another form of the model, and have this one checked"
        )
    probability = pneumonia_probability(logits, temperature)
    return [
        Prediction(
            label=contract.LABELS[label],
            confidence=float(p if label == contract.PNEUMONIA else 1.0 - p),
            probability=float(p),
            threshold=threshold,
            model_id=model_id,
        )
        for p, label in zip(probability, decide(probability, threshold), strict=True)
    ]
