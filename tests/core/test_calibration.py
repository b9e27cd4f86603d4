"""Temperature and threshold do what they promise on data where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pneumonia.core.calibration import (
    choose_threshold,
    fit_temperature,
    fit_temperature_and_offset,
    moved,
    shift_of,
    too_few_to_show,
)
from pneumonia.core.metrics import patient_weights, weighted_metrics
from pneumonia.core.prediction import pneumonia_probability
from pneumonia.errors import GateRefused


def _cohort(seed: int, count: int = 800) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.7).astype(np.int64)
    probability = 1 / (1 + np.exp(-(labels * 3.0 - 1.5 + rng.normal(0, 1.2, count))))
    return labels, probability, (np.arange(count) // 2).astype(str)


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_that_distorted_the_logits_is_found(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 50_000)
    labels = (rng.random(50_000) < 1 / (1 + np.exp(-margin))).astype(np.int64)
    logits = np.stack([-margin / 2, margin / 2], axis=1) * true_temperature
    assert fit_temperature(logits, labels) == pytest.approx(true_temperature, rel=0.05)


@pytest.mark.parametrize(("true_temperature", "true_offset"), [(0.5, 0.0), (1.3, 2.0), (3.0, -4.0)])
def test_an_offset_is_found_beside_the_temperature(true_temperature: float, true_offset: float) -> None:
    rng = np.random.default_rng(1)
    margin = rng.normal(0.5, 2, 50_000)
    labels = (rng.random(50_000) < 1 / (1 + np.exp(-margin))).astype(np.int64)
    distorted = margin * true_temperature - true_offset
    logits = np.stack([np.zeros_like(distorted), distorted], axis=1)
    temperature, offset = fit_temperature_and_offset(logits, labels)
    assert temperature == pytest.approx(true_temperature, rel=0.05)
    assert offset == pytest.approx(true_offset, abs=0.1 * true_temperature)
    logits[:, 1] += offset
    assert pneumonia_probability(logits, temperature).mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_a_model_that_knows_nothing_gets_the_share_of_pneumonia() -> None:
    labels = np.array([0, 1, 1, 1] * 25)
    temperature, offset = fit_temperature_and_offset(np.zeros((100, 2), np.float32), labels)
    assert 1 / (1 + np.exp(-offset / temperature)) == pytest.approx(0.75, abs=1e-6)


def test_the_lower_bound_of_recall_meets_the_target_and_no_higher_threshold_does() -> None:
    labels, probability, patients = _cohort(1)
    threshold = choose_threshold(labels, probability, patients, 0.95)
    weights = patient_weights(patients, 2000, 42)

    def bound(at: float) -> float:
        return float(np.percentile(weighted_metrics(labels, probability, at, weights)["recall"], 2.5))

    assert bound(threshold) >= 0.95
    next_higher = probability[(labels == 1) & (probability > threshold)].min() + 1e-9
    assert bound(next_higher) < 0.95


def test_recall_on_fresh_patients_holds_more_often_than_with_a_threshold_at_the_target_itself() -> None:
    careful = naive = 0
    for seed in range(40):
        labels, probability, patients = _cohort(seed)
        fresh_labels, fresh, _ = _cohort(1000 + seed)
        positive = np.sort(probability[labels == 1])
        cut = choose_threshold(labels, probability, patients, 0.95, samples=400)
        careful += (fresh[fresh_labels == 1] >= cut).mean() >= 0.95
        naive += (fresh[fresh_labels == 1] >= positive[int(0.05 * len(positive))]).mean() >= 0.95
    assert careful >= 36
    assert naive <= 30


def test_the_threshold_lies_between_two_scores_so_that_rounding_flips_nothing() -> None:
    labels, probability, patients = _cohort(2)
    threshold = choose_threshold(labels, probability, patients, 0.9)
    assert np.abs(probability - threshold).min() > 0
    rounded = probability.astype(np.float32).astype(np.float64)
    assert ((rounded >= threshold) == (probability >= threshold)).all()


def test_ties_are_accepted_together() -> None:
    labels = np.ones(100, np.int64)
    probability = np.repeat([0.9, 0.4], 50)
    threshold = choose_threshold(labels, probability, np.arange(100).astype(str), 0.6)
    assert threshold < 0.4


def test_the_threshold_is_at_most_what_is_asked_for() -> None:
    labels = np.repeat([0, 1], 200).astype(np.int64)
    probability = np.repeat([0.6, 0.95], 200)
    patients = np.arange(400).astype(str)
    assert choose_threshold(labels, probability, patients, 0.95) == pytest.approx(0.775)
    assert choose_threshold(labels, probability, patients, 0.95, most=0.5) == 0.5
    assert choose_threshold(labels, probability - 0.5, patients, 0.95, most=0.5) == pytest.approx(0.275)


def test_a_probability_moves_with_the_prevalence() -> None:
    # Bayes' theorem with the likelihood ratio of .8 where half of the images are ill: 4.
    assert moved(0.8, shift_of(0.1, 0.5)) == pytest.approx(4 * 0.1 / (4 * 0.1 + 0.9))
    assert (moved(0.0, -3.0), moved(1.0, -3.0), moved(0.3, 0.0)) == (0, 1, pytest.approx(0.3))


def test_validation_without_pneumonia_is_refused_with_a_count() -> None:
    with pytest.raises(GateRefused, match="0 PNEUMONIA images in validation"):
        choose_threshold(np.zeros(10, np.int64), np.full(10, 0.2), np.arange(10).astype(str), 0.95)


def test_probability_is_the_softmax_and_survives_extreme_logits() -> None:
    logits = np.array([[0.0, 0.0], [1.0, 3.0], [-1e4, 1e4], [1e4, -1e4]], np.float32)
    probability = pneumonia_probability(logits, 1.0)
    assert probability[:2] == pytest.approx([0.5, 1 / (1 + np.exp(-2))])
    assert probability[2] == 1.0
    assert 0 <= probability[3] < 1e-300


@pytest.mark.parametrize(("count", "said"), [(71, "71 PNEUMONIA patients"), (72, ""), (500, "")])
def test_few_patients_cannot_show_a_recall(count: int, said: str) -> None:
    labels = np.array([1] * (2 * count) + [0] * 9)
    patients = np.array([f"p{index // 2}" for index in range(2 * count)] + ["n"] * 9)
    why = too_few_to_show(labels, patients, 0.95)
    assert why.startswith(said) and bool(why) == bool(said)
    assert ("72 could" in why) == bool(said)


def test_no_patient_shows_nothing() -> None:
    assert "0 PNEUMONIA patients" in too_few_to_show(np.zeros(3, np.int64), np.array(["a", "b", "c"]), 0.95)
