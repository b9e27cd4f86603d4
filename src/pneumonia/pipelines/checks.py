"""What a run of the training pipeline is refused for, before it is submitted and again in its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pneumonia.errors import UsageError


def refuse_before_submission(parameters: Mapping[str, Any]) -> None:
    """Raises UsageError for parameters, defaults among them, with which no run of the training pipeline ends well."""
    if parameters.get("source") == "phantom" and parameters.get("deploy") is True:
        raise UsageError(
            "source=phantom with deploy=true: servers refuse a model of drawn images; give deploy=false, or real "
            "X-rays with source=folder, kaggle or medmnist"
        )
