"""Proof that two forms of one model give the same answers on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia.core.prediction import OperatingPoint, decide
from pneumonia.errors import ParityRefused

MAX_PROBABILITY_GAP = 1e-3
"""Largest allowed difference of P(PNEUMONIA) between two float32 forms of one model."""


@dataclass(frozen=True)
class Parity:
    """images: how many were compared. label_agreement: share with the same label, 0..1. max_gap: largest |Δp|."""

    images: int
    label_agreement: float
    max_gap: float

    def to_json(self) -> dict[str, float]:
        """Plain JSON form."""
        return {"images": self.images, "label_agreement": self.label_agreement, "max_gap": self.max_gap}


def compare(
    reference: npt.NDArray[np.floating[Any]],
    other: npt.NDArray[np.floating[Any]],
    point: OperatingPoint,
) -> Parity:
    """Logits (N, 2) of two forms of a model on the same images, in the same order."""
    first, second = point.probability(reference), point.probability(other)
    agreement = float((decide(first, point.threshold) == decide(second, point.threshold)).mean())
    return Parity(len(first), agreement, float(np.abs(first - second).max()))


def require(parity: Parity, form: str, min_agreement: float = 1.0, max_gap: float = MAX_PROBABILITY_GAP) -> Parity:
    """`parity` itself. Raises ParityRefused, naming `form`, where labels or probabilities differ too much."""
    # `not <=` also refuses NaN, which compares false with everything.
    if parity.label_agreement < min_agreement or not parity.max_gap <= max_gap:
        raise ParityRefused(
            f"{form} disagrees with the PyTorch model on {parity.images} images: label agreement "
            f"{parity.label_agreement:.4f} (at least {min_agreement:g} needed), largest difference of P(PNEUMONIA) "
            f"{parity.max_gap:.2e} (at most {max_gap:g} allowed); the model is not exported"
        )
    return parity
