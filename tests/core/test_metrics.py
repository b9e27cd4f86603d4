"""Figures against scikit-learn, and intervals against what resampling patients has to do."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from pneumonia.core.metrics import (
    Interval,
    calibration_fits,
    calibration_with_intervals,
    confusion,
    discordant,
    metrics_with_intervals,
    paired_difference,
    patient_weights,
    point_metrics,
    weighted_metrics,
)


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.7).astype(np.int64)
    # Rounded, so that ties occur.
    return labels, np.clip(0.5 + 0.25 * (labels - 0.5) + rng.normal(0, 0.2, 400), 0, 1).round(2)


def test_figures_equal_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probability = scored
    answers = (probability >= 0.43).astype(int)
    ours = point_metrics(labels, probability, 0.43)
    expected = {
        "accuracy": reference.accuracy_score(labels, answers),
        "precision": reference.precision_score(labels, answers),
        "recall": reference.recall_score(labels, answers),
        "specificity": reference.recall_score(labels, answers, pos_label=0),
        "f1": reference.f1_score(labels, answers),
        "auroc": reference.roc_auc_score(labels, probability),
    }
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert ours["brier"] == pytest.approx(reference.brier_score_loss(labels, probability), abs=1e-12)
    bounded = probability.clip(1e-6, 1 - 1e-6)
    assert ours["log_loss"] == pytest.approx(reference.log_loss(labels, bounded), abs=1e-9)
    assert confusion(labels, probability, 0.43) == reference.confusion_matrix(labels, answers).tolist()


def test_weights_count_like_repeated_images(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probability = scored
    times = np.random.default_rng(1).integers(0, 4, len(labels))
    weighted = weighted_metrics(labels, probability, 0.5, times[None].astype(float))
    repeated = point_metrics(np.repeat(labels, times), np.repeat(probability, times), 0.5)
    assert {name: value[0] for name, value in weighted.items()} == pytest.approx(repeated, abs=1e-12)


def test_calibrated_probabilities_have_a_small_ece_and_overconfident_ones_a_large_one() -> None:
    rng = np.random.default_rng(2)
    probability = rng.random(20_000)
    labels = (rng.random(20_000) < probability).astype(np.int64)
    assert point_metrics(labels, probability, 0.5)["ece"] < 0.02
    assert point_metrics(labels, (probability > 0.5).astype(float), 0.5)["ece"] > 0.2


def test_calibration_fits_equal_scikit_learns(scored: tuple[np.ndarray, np.ndarray]) -> None:
    from scipy.special import expit, logit
    from sklearn.linear_model import LogisticRegression

    labels, probability = scored
    x = logit(probability.clip(1e-6, 1 - 1e-6))
    times = np.random.default_rng(1).integers(0, 4, (3, len(labels)))
    found = calibration_fits(labels, probability, times.astype(float))
    for row, weights in enumerate(times):
        model = LogisticRegression(C=np.inf, tol=1e-10).fit(x[:, None], labels, sample_weight=weights)
        assert found["calibration_slope"][row] == pytest.approx(float(model.coef_[0, 0]), abs=1e-4)
        # At the intercept the mean probability is the share of positives.
        mean = np.average(expit(x + found["calibration_intercept"][row]), weights=weights)
        assert mean == pytest.approx(np.average(labels, weights=weights), abs=1e-6)


def test_the_slope_and_intercept_of_known_mistakes() -> None:
    from scipy.special import expit, logit

    rng = np.random.default_rng(3)
    true = rng.uniform(0.02, 0.98, 40_000)
    labels = (rng.random(len(true)) < true).astype(np.int64)
    patients = np.arange(len(true)).astype(str)
    for said, slope, intercept in ((true, 1, 0), (expit(2 * logit(true)), 0.5, None), (expit(logit(true) - 1), 1, 1)):
        fits = calibration_fits(labels, said, np.ones((1, len(labels))))
        assert fits["calibration_slope"][0] == pytest.approx(slope, abs=0.03)
        if intercept is not None:
            assert fits["calibration_intercept"][0] == pytest.approx(intercept, abs=0.05)
    found = calibration_with_intervals(labels[:2000], true[:2000], patients[:2000], samples=200)
    for name, right in (("calibration_slope", 1), ("calibration_intercept", 0)):
        low, high = found[name].low, found[name].high
        assert low is not None and high is not None and low < right < high
    assert metrics_with_intervals(labels[:500], true[:500], 0.5, patients[:500], samples=100)["ece"].low is None


def test_a_slope_without_an_end_is_undefined() -> None:
    labels, probability = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    weights = np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    found = calibration_fits(labels, probability, weights)
    assert np.isnan(found["calibration_slope"]).all()
    assert np.isnan(found["calibration_intercept"]).tolist() == [False, True]


def test_an_answer_at_the_threshold_itself_is_one_of_those_that_are_all_right() -> None:
    patients = np.arange(20).astype(str)
    found = metrics_with_intervals(np.ones(20, np.int64), np.full(20, 0.5), 0.5, patients, samples=50)
    assert found["precision"] == Interval(1.0, round(0.025 ** (1 / 20), 6), 1)


def test_discordant_images_are_counted_by_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    one, other = np.array([0.1, 0.9, 0.1, 0.9, 0.9, 0.1, 0.1]), np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9])
    assert discordant(labels, (one, 0.5), (other, 0.5)) == {
        "NORMAL": {"only_this": 0, "only_champion": 1},
        "PNEUMONIA": {"only_this": 2, "only_champion": 1},
    }
    # At the threshold itself the answer is PNEUMONIA.
    assert discordant(labels, (one, 0.9), (other, 0.91))["PNEUMONIA"] == {"only_this": 2, "only_champion": 0}
    assert discordant(labels, (one, 0.5), (other, 0.05))["PNEUMONIA"] == {"only_this": 0, "only_champion": 2}


def test_undefined_figures_are_none_not_a_number() -> None:
    labels = np.zeros(4, np.int64)
    intervals = metrics_with_intervals(labels, np.full(4, 0.1), 0.5, np.array(list("abcd")), samples=100)
    assert intervals["precision"].to_json() == {"value": None, "low": None, "high": None}
    assert intervals["recall"].value is None
    assert intervals["accuracy"].value == 1.0


def test_images_of_a_patient_are_drawn_together() -> None:
    patients = np.array(["a", "a", "b", "c", "c", "c"])
    weights = patient_weights(patients, samples=200, seed=3)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    # Three patients are drawn each time.
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_few_patients_with_many_images_give_wider_intervals_than_independent_images() -> None:
    rng = np.random.default_rng(4)
    per_patient = rng.random(20) < 0.8
    labels = np.ones(400, np.int64)
    probability = np.repeat(per_patient.astype(float), 20)
    together = metrics_with_intervals(labels, probability, 0.5, np.repeat(np.arange(20).astype(str), 20))["recall"]
    alone = metrics_with_intervals(labels, probability, 0.5, np.arange(400).astype(str))["recall"]
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_intervals_repeat_for_one_seed(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probability = scored
    patients = np.arange(len(labels)).astype(str)
    first = metrics_with_intervals(labels, probability, 0.5, patients, seed=5)
    assert first == metrics_with_intervals(labels, probability, 0.5, patients, seed=5)
    assert first["recall"].low < first["recall"].value < first["recall"].high


def test_predictive_values_follow_the_prevalence_and_not_the_class_ratio_of_the_test(
    scored: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, probability = scored
    own = labels.mean()
    answers = (probability >= 0.5).astype(int)
    there = point_metrics(labels, probability, 0.5, prevalence=own)
    assert there["ppv"] == pytest.approx(reference.precision_score(labels, answers), abs=1e-12)
    assert there["npv"] == pytest.approx(reference.precision_score(labels, answers, pos_label=0), abs=1e-12)
    rare = point_metrics(labels, probability, 0.5, prevalence=0.05)
    assert rare["ppv"] < there["ppv"]
    assert rare["npv"] > there["npv"]
    assert rare["recall"] == there["recall"]


def test_two_models_are_compared_on_the_same_draws(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probability = scored
    patients = np.arange(len(labels)).astype(str)
    same = paired_difference(labels, (probability, 0.5), (probability, 0.5), patients)
    assert {(gap.value, gap.low, gap.high) for gap in same.values()} == {(0.0, 0.0, 0.0)}
    better = np.clip(probability + 0.05 * (2 * labels - 1), 0, 1)
    gap = paired_difference(labels, (better, 0.5), (probability, 0.5), patients)["auroc"]
    assert gap.low is not None
    assert gap.low > 0
    alone = metrics_with_intervals(labels, better, 0.5, patients)["auroc"]
    # Paired, the interval is narrower than that of either model alone.
    assert gap.high - gap.low < alone.high - alone.low


def test_answers_that_are_all_right_are_not_certain() -> None:
    labels = np.repeat([0, 1], 30)
    patients = np.array([f"p{index // 2}" for index in range(60)])
    found = metrics_with_intervals(labels, labels * 0.8 + 0.1, 0.5, patients, samples=200)
    # Clopper and Pearson's lower end for 15 of 15 patients, and for 30 of 30; scipy.stats.beta.ppf(.025, 15, 1).
    assert found["recall"] == found["specificity"] == found["precision"] == Interval(1.0, 0.781981, 1)
    assert found["accuracy"] == Interval(1.0, 0.884297, 1)
    assert found["f1"] == Interval(1.0, 0.781981, 1)
    wrong = metrics_with_intervals(labels, 0.9 - labels * 0.8, 0.5, patients, samples=200)
    assert wrong["recall"] == Interval(0.0, 0, 0.218019)
    one = metrics_with_intervals(labels, np.where(np.arange(60) == 59, 0.1, labels * 0.8 + 0.1), 0.5, patients)[
        "recall"
    ]
    assert one.low is not None
    assert 0.78198 < one.low < one.value < 1  # type: ignore[operator]
