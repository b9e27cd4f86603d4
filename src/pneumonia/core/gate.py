"""The yes or no before a model is exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def refusals(metrics: Mapping[str, Mapping[str, Any]], least: Mapping[str, float]) -> list[str]:
    """Every reason why a model may not pass; empty when it may.

    metrics: by name, {"value": ...} as an evaluation wrote them. least: the smallest value allowed by name.
    """
    reasons = []
    for name, bound in least.items():
        value = metrics.get(name, {}).get("value")
        if value is None:
            reasons.append(f"test {name} is undefined, at least {bound:g} is required")
        elif value < bound:
            reasons.append(f"test {name} {value:.4f} is below {bound:g}")
    return reasons
