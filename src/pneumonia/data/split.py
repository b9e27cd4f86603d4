"""Train, val and test: patients never straddle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.config.schema import SplitConfig
from pneumonia.errors import DataError

MIN_VAL_IMAGES = 100
"""An official val folder with fewer images (the Kaggle set's has 16) cannot carry a threshold."""

Strings: TypeAlias = npt.NDArray[np.str_]
Labels: TypeAlias = npt.NDArray[np.int64]


def assign(
    config: SplitConfig, labels: Labels, patients: Strings, official: Sequence[str | None]
) -> tuple[Strings, str | None]:
    """The part (train, val or test) by image, and a note where the official split had to be completed.

    labels (N,), patients (N,), official: the data set's own part by image, None where it has none. Deterministic for
    one seed. Only `patient` promises that no patient straddles; see `straddlers`. Raises DataError where an official
    split has no train or test part, and where a part would lack a class.
    """
    note = None
    if config.strategy == "official":
        parts, note = _official(config, labels, patients, official)
    else:
        units = patients if config.strategy == "patient" else np.array([f"{i:09d}" for i in range(len(labels))])
        parts = _divide(config, labels, units, {name: getattr(config, name) for name in contract.SPLITS})
    for part in contract.SPLITS:
        for index, name in enumerate(contract.LABELS):
            if not ((parts == part) & (labels == index)).any():
                raise DataError(
                    f"split.strategy={config.strategy}: {part} would have no {name} image; bring more patients of "
                    f"that class, or a larger share with split.{part}="
                )
    return parts, note


def hold_out(
    parts: Strings, groups: Strings, labels: Labels, patients: Strings, held: Sequence[str]
) -> tuple[Strings, str]:
    """Parts where test is the subgroups `held` alone and train and val have none of them, and a note that says so.

    Held images of patients who remain in train or val, and test images of other subgroups, become unused: a patient
    never straddles. All arrays are (N,). Raises DataError for an unknown subgroup, or where a part loses a class.
    """
    if unknown := sorted(set(held) - set(groups.tolist())):
        have = ", ".join(sorted(set(groups.tolist())))
        raise DataError(f"split.hold_out: no image of {', '.join(unknown)}; the subgroups here are {have}")
    inside = np.isin(groups, list(held))
    seen = np.unique(patients[~inside & (parts != "test")])
    found = np.where(~inside & (parts != "test"), parts, contract.UNUSED)
    found[inside & ~np.isin(patients, seen)] = "test"
    for part in contract.SPLITS:
        for index, name in enumerate(contract.LABELS):
            if not ((found == part) & (labels == index)).any():
                raise DataError(f"split.hold_out={','.join(held)}: {part} would have no {name} image; hold out others")
    note = (
        f"Tested on {', '.join(held)} alone, which training and validation never saw: "
        f"{int((found == 'test').sum())} images; {int((found == contract.UNUSED).sum())} images are unused."
    )
    return found, note


def straddlers(parts: Strings, patients: Strings) -> list[str]:
    """Patients with images in more than one part, sorted."""
    return sorted({str(p) for p, count in zip(*_parts_by_patient(parts, patients), strict=True) if count > 1})


def _parts_by_patient(parts: Strings, patients: Strings) -> tuple[Strings, npt.NDArray[np.int64]]:
    pairs = np.unique(np.stack([patients, parts]), axis=1)  # (2, distinct pairs)
    names, counts = np.unique(pairs[0], return_counts=True)
    return names, counts


def _divide(config: SplitConfig, labels: Labels, units: Strings, shares: dict[str, float]) -> Strings:
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


def check_official(official: Sequence[str | None]) -> None:
    """Raises DataError where the data set's own parts, by image, cannot be used for split.strategy=official."""
    for needed in ("train", "test"):
        if needed not in official:
            raise DataError(
                f"split.strategy=official: no image is in a {needed} part; use split.strategy=patient, or bring train "
                "and test folders or a split column in labels.csv"
            )
    if None in official:
        raise DataError(
            f"split.strategy=official: {official.count(None)} images are in none of train, val and test; move them, "
            "fill their split in labels.csv, or use split.strategy=patient"
        )


def _official(
    config: SplitConfig, labels: Labels, patients: Strings, official: Sequence[str | None]
) -> tuple[Strings, str | None]:
    """The data set's own parts; where val is absent or tiny, train and val are divided anew by patient."""
    check_official(official)
    parts = np.array(official, dtype="<U5")
    small = int((parts == "val").sum())
    if small >= MIN_VAL_IMAGES:
        return parts, None
    pool = parts != "test"
    total = config.train + config.val
    shares = {"train": config.train / total, "val": config.val / total}
    parts[pool] = _divide(config, labels[pool], patients[pool], shares)
    return parts, (
        f"official test part; its val part has {small} images, fewer than {MIN_VAL_IMAGES}, so train and val were "
        f"put together and {int((parts == 'val').sum())} images taken for val by patient"
    )
