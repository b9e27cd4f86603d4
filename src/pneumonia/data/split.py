"""Train, val and test: patients never straddle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.config.schema import SplitConfig
from pneumonia.errors import DataError

MIN_VAL_IMAGES = 100
"""An official val folder with fewer images (the Kaggle set's has 16) cannot carry a threshold."""

Strings = npt.NDArray[np.str_]


def assign(
    config: SplitConfig, labels: npt.NDArray[np.int64], patients: Strings, official: list[str | None]
) -> tuple[Strings, str | None]:
    """The part (train, val or test) by image, and a note where the official split was completed.

    labels (N,), patients (N,), official: the data set's own part by image, None where it has none. Deterministic for
    one seed, whatever the order of the images. Raises DataError where an official split has no test part or puts a
    patient on both sides of it.
    """
    if config.strategy == "official":
        return _official(config, labels, patients, official)
    units = patients if config.strategy == "patient" else np.array([f"{i:09d}" for i in range(len(labels))])
    return _divide(config, labels, units, {name: getattr(config, name) for name in contract.SPLITS}), None


def _divide(config: SplitConfig, labels: npt.NDArray[np.int64], units: Strings, shares: dict[str, float]) -> Strings:
    """Whole units to the parts so that each class has its share of images in each part.

    Units are shuffled, then the largest go first, each to the part that is furthest below its share of the classes
    the unit brings: with many small units the shares come out within a few images.
    """
    names, member = np.unique(units, return_inverse=True)
    counts = np.zeros((len(names), len(contract.LABELS)))
    np.add.at(counts, (member, labels), 1)
    order = np.random.default_rng(config.seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    parts = list(shares)
    want = np.array([shares[part] for part in parts])[:, None] * counts.sum(axis=0)  # (parts, classes)
    have = np.zeros_like(want)
    chosen = np.empty(len(names), np.int64)
    for unit in order:
        lacking = (want - have) / np.maximum(want, 1)
        chosen[unit] = int(np.argmax((lacking * counts[unit]).sum(axis=1)))
        have[chosen[unit]] += counts[unit]
    assigned: Strings = np.array(parts)[chosen[member]]
    return assigned


def _official(
    config: SplitConfig, labels: npt.NDArray[np.int64], patients: Strings, official: list[str | None]
) -> tuple[Strings, str | None]:
    parts = np.array([part or "" for part in official])
    for needed in ("train", "test"):
        if not (parts == needed).any():
            raise DataError(
                f"split.strategy=official: no image is in a {needed} part; use split.strategy=patient, or bring train "
                "and test folders or a split column in labels.csv"
            )
    if (parts == "").any():
        raise DataError(f"split.strategy=official: {int((parts == '').sum())} images are in no part")
    note = None
    small = int((parts == "val").sum())
    if small < MIN_VAL_IMAGES:
        pool = parts != "test"
        shares = {"train": config.train / (config.train + config.val), "val": config.val / (config.train + config.val)}
        parts[pool] = _divide(config, labels[pool], patients[pool], shares)
        note = f"val has {small} images of its own, so it was taken from train by patient"
    check_patients(parts, patients)
    return parts, note


def check_patients(parts: Strings, patients: Strings) -> None:
    """Raises DataError, naming examples, where a patient has images in more than one part."""
    pairs = sorted(set(zip(patients.tolist(), parts.tolist(), strict=True)))
    twice = [patient for (patient, _), (following, _) in pairwise(pairs) if patient == following]
    if twice:
        raise DataError(
            f"{len(set(twice))} patients are in more than one part of the split, such as {', '.join(twice[:3])}; use "
            "split.strategy=patient, which keeps every patient on one side"
        )
