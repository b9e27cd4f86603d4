"""The images that a model's forms are asked about hold both classes and both answers, whatever the files are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumonia.core.prediction import OperatingPoint
from pneumonia.data.prepared import PreparedData
from pneumonia.errors import DataError, ParityRefused
from pneumonia.export.spread import require_both_answers, spread


def data_of(labels: list[str], seed: int = 0) -> PreparedData:
    """A data set sorted by path, as folders are: every NORMAL image stands before the first PNEUMONIA one."""
    digests = [f"{value:064x}" for value in np.random.default_rng(seed).permutation(len(labels))]
    index = {"label": labels, "sha256": digests, "split": ["test"] * len(labels)}
    return PreparedData(Path("prepared"), {}, index)


SORTED = data_of(["NORMAL"] * 201 + ["PNEUMONIA"] * 578)
ALL = np.arange(779)
POINT = OperatingPoint(1.0, 0.5)


def test_both_classes_are_asked_where_the_first_rows_are_one_class() -> None:
    for count in (64, 200):
        rows = spread(SORTED, ALL, count)
        assert len(rows) == count and len(set(rows)) == count
        assert int((SORTED.labels[rows] == 1).sum()) == count // 2


def test_neither_names_nor_order_choose() -> None:
    chosen = {SORTED.index["sha256"][row] for row in spread(SORTED, ALL, 64)}
    backwards = PreparedData(SORTED.path, {}, {name: column[::-1] for name, column in SORTED.index.items()})
    assert {backwards.index["sha256"][row] for row in spread(backwards, ALL, 64)} == chosen


def test_wrong_answers_keep_their_share_and_are_there() -> None:
    answers = SORTED.labels.copy()
    answers[:3] = 1  # three healthy ones that the model calls sick, of 201
    answers[201 : 201 + 58] = 0  # a tenth of the sick ones
    rows = spread(SORTED, ALL, 64, answers)
    wrong = answers[rows] != SORTED.labels[rows]
    assert [int(wrong[SORTED.labels[rows] == label].sum()) for label in (0, 1)] == [1, 3]


@pytest.mark.parametrize(("normal", "pneumonia", "expected"), [(3, 100, (3, 61)), (100, 3, (61, 3)), (4, 4, (4, 4))])
def test_what_one_class_lacks_the_other_gives(normal: int, pneumonia: int, expected: tuple[int, int]) -> None:
    data = data_of(["NORMAL"] * normal + ["PNEUMONIA"] * pneumonia)
    labels = data.labels[spread(data, np.arange(normal + pneumonia), 64)]
    assert (int((labels == 0).sum()), int((labels == 1).sum())) == expected


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match="none of 64 images is PNEUMONIA, and a check of a model needs both classes"):
        spread(SORTED, np.arange(64), 64)


def test_one_answer_for_all_proves_nothing() -> None:
    logits: Any = np.array([[2.0, -2.0], [3.0, -1.0]])
    with pytest.raises(ParityRefused, match="answers NORMAL for all 2 test images"):
        require_both_answers(POINT.answers(logits), "test images")
    require_both_answers(POINT.answers(np.array([[2.0, -2.0], [-3.0, 1.0]])), "test images")
