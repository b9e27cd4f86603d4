"""Splits: no patient straddles, classes keep their shares, the data set's own folders are honoured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumonia.config.schema import SplitConfig
from pneumonia.data.split import assign, hold_out, straddlers
from pneumonia.errors import DataError

Cohort = tuple[np.ndarray, np.ndarray]


def cohort(patients: int = 1000, seed: int = 0) -> Cohort:
    """Labels and patients: 1 to 8 images each, 73 % ill, a few patients with both classes."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 3, 8], patients, p=[0.6, 0.2, 0.15, 0.05])
    keys = np.repeat([f"p{i}" for i in range(patients)], sizes)
    labels = np.repeat((rng.random(patients) < 0.73).astype(np.int64), sizes)
    flipped = rng.random(len(labels)) < 0.01
    return np.where(flipped, 1 - labels, labels), keys


def parts_by_patient(parts: np.ndarray, patients: np.ndarray) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for part, patient in zip(parts.tolist(), patients.tolist(), strict=True):
        found.setdefault(patient, set()).add(part)
    return found


@settings(max_examples=25, deadline=None)
@given(data_seed=st.integers(0, 10_000), seed=st.integers(0, 10_000), patients=st.integers(60, 300))
def test_no_patient_straddles(data_seed: int, seed: int, patients: int) -> None:
    labels, keys = cohort(patients, data_seed)
    parts, _ = assign(SplitConfig(seed=seed), labels, keys, [None] * len(labels))
    assert all(len(found) == 1 for found in parts_by_patient(parts, keys).values())
    assert straddlers(parts, keys) == []


@pytest.mark.parametrize("strategy", ["patient", "stratified"])
@pytest.mark.parametrize("seed", [1, 42])
def test_parts_and_classes_keep_their_shares_within_a_point(strategy: str, seed: int) -> None:
    labels, keys = cohort()
    parts, _ = assign(SplitConfig(strategy=strategy, seed=seed), labels, keys, [None] * len(labels))
    for part, share in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
        inside = parts == part
        assert inside.mean() == pytest.approx(share, abs=0.01)
        assert labels[inside].mean() == pytest.approx(labels.mean(), abs=0.01)


def test_one_seed_gives_one_split_in_any_order_and_another_seed_another() -> None:
    labels, keys = cohort(300)
    none = [None] * len(labels)
    parts, _ = assign(SplitConfig(), labels, keys, none)
    order = np.random.default_rng(3).permutation(len(labels))
    shuffled, _ = assign(SplitConfig(), labels[order], keys[order], none)
    assert (shuffled == parts[order]).all()
    assert (assign(SplitConfig(seed=43), labels, keys, none)[0] != parts).any()


def test_the_image_level_split_leaks_and_straddlers_says_so() -> None:
    labels, keys = cohort()
    parts, _ = assign(SplitConfig(strategy="stratified"), labels, keys, [None] * len(labels))
    expected = sorted(patient for patient, found in parts_by_patient(parts, keys).items() if len(found) > 1)
    assert len(expected) > 100
    assert straddlers(parts, keys) == expected


def test_official_keeps_a_large_val_as_it_is() -> None:
    labels, keys = cohort(600)
    owners = {key: ("train", "val", "test")[int(key[1:]) % 3] for key in set(keys)}
    own = [owners[key] for key in keys]
    parts, note = assign(SplitConfig(strategy="official"), labels, keys, own)
    assert parts.tolist() == own
    assert note is None


@pytest.mark.parametrize("val_patients", [0, 4])
def test_official_takes_val_from_train_by_patient_where_it_is_absent_or_tiny(val_patients: int) -> None:
    labels, keys = cohort(600)
    number = np.array([int(key[1:]) for key in keys])
    own = np.where(number % 5 == 0, "test", np.where(number < val_patients, "val", "train"))
    parts, note = assign(SplitConfig(strategy="official"), labels, keys, own.tolist())
    assert ((parts == "test") == (own == "test")).all()
    assert straddlers(parts, keys) == []
    rest = parts != "test"
    assert (parts[rest] == "val").mean() == pytest.approx(0.15 / 0.85, abs=0.01)
    assert note is not None
    assert f"val part has {int((own == 'val').sum())} images" in note


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_official_without_a_part_says_what_to_do(lacking: str) -> None:
    labels, keys = cohort(60)
    other = {"train": "test", "test": "train"}[lacking]
    with pytest.raises(DataError, match=rf"{lacking} part; use split\.strategy=patient"):
        assign(SplitConfig(strategy="official"), labels, keys, [other] * len(labels))


def test_official_refuses_images_in_no_part() -> None:
    labels, keys = cohort(60)
    own = ["train", "test", None] + ["train"] * (len(labels) - 3)
    with pytest.raises(DataError, match="1 images are in none of train, val and test"):
        assign(SplitConfig(strategy="official"), labels, keys, own)


def test_a_part_without_a_class_is_refused() -> None:
    labels = np.array([0] * 2 + [1] * 60)
    keys = np.array(["a", "b", *(f"p{i}" for i in range(60))])
    with pytest.raises(DataError, match="would have no NORMAL image"):
        assign(SplitConfig(), labels, keys, [None] * len(labels))


def _named(count: int = 240) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """labels, patients and subgroups of two images a patient, whose second may be of another subgroup."""
    patients = np.array([f"p{i // 2}" for i in range(count)])
    labels = np.array([(i // 2) % 2 for i in range(count)])
    rng = np.random.default_rng(0)
    pairs = np.array([["IM", "NORMAL2"], ["bacteria", "virus"]])
    return labels, patients, pairs[labels, rng.integers(0, 2, count)]


def test_held_out_subgroups_are_tested_on_alone_and_nobody_straddles() -> None:
    labels, patients, groups = _named()
    before, _ = assign(SplitConfig(), labels, patients, [None] * len(labels))
    parts, note = hold_out(before, groups, labels, patients, ["NORMAL2", "virus"])
    assert set(groups[parts == "test"]) == {"NORMAL2", "virus"}
    assert set(groups[(parts == "train") | (parts == "val")]) == {"IM", "bacteria"}
    used = parts != "unused"
    assert straddlers(parts[used], patients[used]) == []
    # Nothing is left out without a reason: its patient is in train or val, or it was a test image of a known subgroup.
    seen = set(patients[(parts == "train") | (parts == "val")])
    for part, patient, group, own in zip(parts, patients, groups, before, strict=True):
        if part == "unused":
            assert (group in ("NORMAL2", "virus") and patient in seen) or own == "test"
    assert f"{(parts == 'unused').sum()} images are unused" in note


def test_holding_out_what_is_not_there_names_what_is() -> None:
    labels, patients, groups = _named()
    parts, _ = assign(SplitConfig(), labels, patients, [None] * len(labels))
    with pytest.raises(DataError, match="no image of fungus; the subgroups here are IM, NORMAL2, bacteria, virus"):
        hold_out(parts, groups, labels, patients, ["virus", "fungus"])
    with pytest.raises(DataError, match="test would have no NORMAL image"):
        hold_out(parts, groups, labels, patients, ["virus"])
