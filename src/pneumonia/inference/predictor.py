"""The one-method seam between a caller with images and whatever answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pneumonia.core.prediction import Prediction


class Predictor(Protocol):
    """Answers encoded images."""

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """Encoded JPEG or PNG bytes -> one Prediction an image, in order.

        Raises ImageError for an image that cannot be decoded, ServerUnavailable where a server does not answer.
        """
        ...
