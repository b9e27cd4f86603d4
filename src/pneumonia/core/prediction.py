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
    `label`, 0..1; below .5 where the threshold is below .5 and the answer PNEUMONIA. threshold: P(PNEUMONIA) at and
    above which the answer is PNEUMONIA. uncertain: neither class is as probable as the model's `sure`. model_id: the
    bundle's name and digest.
    """

    label: str
    confidence: float
    probability: float
    threshold: float
    uncertain: bool
    model_id: str


@dataclass(frozen=True)
class OperatingPoint:
    """How a model's logits become answers.

    temperature: divides them, > 0. offset: added to the log-odds of PNEUMONIA then; for the share of it at a site.
    threshold: P(PNEUMONIA) from which the answer is PNEUMONIA, 0..1. sure: an answer is uncertain where
    neither class is this probable, .5 (none is) to 1.
    """

    temperature: float
    threshold: float
    offset: float = 0.0
    sure: float = 0.5

    def probability(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """`pneumonia_probability` of logits (B, 2)."""
        return pneumonia_probability(logits, self.temperature, self.offset)

    def answers(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        """Class index by image, (B,), of logits (B, 2)."""
        return decide(self.probability(logits), self.threshold)

    def is_uncertain(self, probability: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """P(PNEUMONIA) (B,) -> which answers are marked, (B,)."""
        return np.asarray(np.maximum(probability, 1 - probability) < self.sure)


def pneumonia_probability(
    logits: npt.NDArray[np.floating[Any]], temperature: float, offset: float = 0.0
) -> npt.NDArray[np.float64]:
    """Logits (B, 2) -> calibrated P(PNEUMONIA) (B,): the softmax of logits / temperature, in float64.

    offset: added to the log-odds of PNEUMONIA.
    """
    margin = (logits[:, contract.NORMAL].astype(np.float64) - logits[:, contract.PNEUMONIA]) / temperature - offset
    # Softmax of two classes is a logistic of the margin; the clip keeps exp finite and changes nothing visible.
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(margin, -700, 700))))


def decide(probability: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.int64]:
    """P(PNEUMONIA) (B,) -> class index (B,): 1 at and above the threshold."""
    return (probability >= threshold).astype(np.int64)


def predictions(logits: npt.NDArray[np.floating[Any]], point: OperatingPoint, model_id: str) -> list[Prediction]:
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
    probability = point.probability(logits)
    return [
        Prediction(
            label=contract.LABELS[label],
            confidence=float(p if label == contract.PNEUMONIA else 1.0 - p),
            probability=float(p),
            threshold=point.threshold,
            uncertain=bool(unsure),
            model_id=model_id,
        )
        for p, label, unsure in zip(
            probability, decide(probability, point.threshold), point.is_uncertain(probability), strict=True
        )
    ]
