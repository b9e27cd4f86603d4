"""The gate names every failed figure and lets nothing undefined pass."""

from __future__ import annotations

import pytest

from pneumonia.core.gate import refusals, worse_than_champion
from pneumonia.core.metrics import Interval
from pneumonia.errors import GateRefused

LEAST = {"accuracy": 0.9, "precision": 0.88, "recall": 0.92, "f1": 0.9}


def _metrics(**values: float | None) -> dict[str, dict[str, float | None]]:
    return {name: {"value": value} for name, value in {**dict.fromkeys(LEAST, 0.95), **values}.items()}


def test_a_model_at_the_bound_passes() -> None:
    assert refusals({name: {"value": bound} for name, bound in LEAST.items()}, LEAST) == []


@pytest.mark.parametrize("name", LEAST)
def test_each_figure_can_refuse_alone(name: str) -> None:
    reasons = refusals(_metrics(**{name: LEAST[name] - 0.0001}), LEAST)
    assert len(reasons) == 1
    assert name in reasons[0]


def test_a_figure_may_have_an_upper_bound() -> None:
    assert refusals({"ece": {"value": 0.1}}, {}, {"ece": 0.1}) == []
    assert refusals({"ece": {"value": 0.1001}}, {}, {"ece": 0.1}) == ["test ece 0.1001 is above 0.1"]
    assert refusals({"ece": {"value": None}}, {}, {"ece": 0.1}) == ["test ece is undefined, at most 0.1 is allowed"]


@pytest.mark.parametrize(
    ("low", "refused"),
    [(-0.02, False), (-0.0201, True), (0.01, False), (None, True)],
    ids=["at", "below", "above", "none"],
)
def test_a_model_has_to_show_that_it_is_not_worse_than_the_champion(low: float | None, refused: bool) -> None:
    even = Interval(0.0, -0.001, 0.001)
    gap = Interval(None if low is None else 0.0, low, None if low is None else 0.02)
    for name, other in (("recall", "auroc"), ("auroc", "recall")):
        reasons = worse_than_champion({name: gap, other: even}, 0.02)
        assert [name in reason for reason in reasons] == [True] * refused


def test_undefined_and_missing_figures_refuse() -> None:
    assert "undefined" in refusals(_metrics(precision=None), LEAST)[0]
    assert len(refusals({}, LEAST)) == 4


def test_the_error_carries_all_reasons_and_its_exit_code() -> None:
    error = GateRefused(refusals(_metrics(recall=0.5, f1=0.6), LEAST))
    assert error.exit_code == 5
    assert "recall 0.5000 is below 0.92" in str(error)
    assert "f1" in str(error)
