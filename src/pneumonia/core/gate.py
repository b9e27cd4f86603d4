"""The yes or no before a model is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pneumonia.core.metrics import Interval


def refusals(
    metrics: Mapping[str, Mapping[str, Any]], least: Mapping[str, float], most: Mapping[str, float] | None = None
) -> list[str]:
    """Every reason why a model may not pass; empty when it may.

    metrics: by name, {"value", "low", "high"} as an evaluation wrote them. least: the smallest value allowed by name;
    a name that ends in _low is about the lower end of the 95 % interval. most: the largest value allowed by name.
    """
    reasons = []
    for name, bound in least.items():
        figure = name.removesuffix("_low")
        value = metrics.get(figure, {}).get("value" if figure == name else "low")
        what = f"test {figure}" if figure == name else f"lower 95 % bound of test {figure}"
        if value is None:
            reasons.append(f"{what} is undefined, at least {bound:g} is required")
        elif value < bound:
            reasons.append(f"{what} {value:.4f} is below {bound:g}")
    for name, bound in (most or {}).items():
        value = metrics.get(name, {}).get("value")
        if value is None:
            reasons.append(f"test {name} is undefined, at most {bound:g} is allowed")
        elif value > bound:
            reasons.append(f"test {name} {value:.4f} is above {bound:g}")
    return reasons


def stress_refusals(worst: Mapping[str, Mapping[str, Any]], least: Mapping[str, float | None]) -> list[str]:
    """Every reason why the figures under the worst changes of framing are too low; empty where they are not.

    worst: by figure, {"value", "change"}; empty where nothing was scored under changes. least: the smallest value
    allowed by figure, None where nothing is asked.
    """
    reasons = []
    for figure, bound in least.items():
        if bound is None:
            continue
        found = worst.get(figure, {})
        value, under = found.get("value"), f" under {found['change']}" if found else ""
        if not found:
            reasons.append(f"stress {figure} was not measured, at least {bound:g} is required: evaluation.stress=true")
        elif value is None:
            reasons.append(f"stress {figure}{under} is undefined, at least {bound:g} is required")
        elif value < bound:
            reasons.append(f"stress {figure} {value:.4f}{under} is below {bound:g}")
    return reasons


def worse_than_champion(
    difference: Mapping[str, Interval], margin: float, names: Sequence[str] = ("recall", "auroc")
) -> list[str]:
    """Every figure in which a model may be worse than the champion by more than `margin`; empty where in none.

    difference: model minus champion, from `core.metrics.paired_difference`. The lower end of its 95 % interval decides,
    as in a non-inferiority trial: few images are no proof that nothing was lost.
    """
    reasons = []
    for name in names:
        gap = difference[name]
        if gap.value is None or gap.low is None or gap.high is None:
            reasons.append(f"test {name} cannot be compared with the champion's: it is undefined")
        elif gap.low < -margin:
            reasons.append(
                f"test {name} may be below the champion's by more than {margin:g}: {gap.value:+.4f} (95 % interval "
                f"{gap.low:+.4f} to {gap.high:+.4f}); a better model or more test patients would show that it is not"
            )
    return reasons
