"""Chooses the images that every check of a model's forms asks about: both classes, both answers, whatever the order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.data.prepared import PreparedData
from pneumonia.errors import DataError, ParityRefused

Rows = npt.NDArray[np.int64]


def spread(data: PreparedData, rows: Rows, count: int, answers: npt.NDArray[np.int64] | None = None) -> Rows:
    """At most `count` of `rows`, as many of each class as there are, ascending.

    answers: class index that the model gave for each of `rows`, (len(rows),). With them a class keeps its share of
    wrong answers, and one at least where there are any. Within a group images go by their SHA-256, so that neither
    file names nor their order choose. Raises DataError where one class is missing.
    """
    labels = data.labels[rows]
    missing = [name for index, name in enumerate(contract.LABELS) if not (labels == index).any()]
    if missing:
        raise DataError(
            f"{data.path}: none of {len(rows)} images is {' or '.join(missing)}, and a check of a model needs both "
            "classes; prepare data that hold both"
        )
    by_digest = np.argsort(np.array(data.index["sha256"])[rows], kind="stable")
    quotas = _quotas([int((labels == index).sum()) for index in range(len(contract.LABELS))], count)
    chosen: list[int] = []
    for index, quota in enumerate(quotas):
        of_class = by_digest[labels[by_digest] == index]
        wrong = of_class[answers[of_class] != index] if answers is not None else of_class[:0]
        right = of_class[~np.isin(of_class, wrong)]
        share = min(len(wrong), max(round(quota * len(wrong) / len(of_class)), min(1, len(wrong)), quota - len(right)))
        chosen += [*wrong[:share], *right[: quota - share]]
    return np.sort(rows[chosen])


def _quotas(available: list[int], count: int) -> list[int]:
    """Equal numbers of two classes; what one lacks, the other gives."""
    first, second = available
    half = min(first, max(count // 2, count - second))
    return [half, min(second, count - half)]


def require_both_answers(answers: npt.NDArray[np.int64], images: str) -> None:
    """Raise ParityRefused where all answers are the same: a form that always says so would agree as well."""
    if len(np.unique(answers)) < len(contract.LABELS):
        raise ParityRefused(
            f"the model answers {contract.LABELS[int(answers[0])]} for all {len(answers)} {images}, so agreement would "
            "prove nothing; train a model that tells the classes apart"
        )
