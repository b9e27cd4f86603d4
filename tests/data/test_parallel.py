"""Parallel work: order, bounded memory, failures that are told."""

from __future__ import annotations

import os
import signal

import pytest

from pneumonia.data.parallel import CHUNK, CHUNKS_AHEAD, ITEMS_PER_PROCESS, parallel_map
from pneumonia.errors import DataError, PneumoniaError

COUNT = 4 * ITEMS_PER_PROCESS + 5


def process_of(item: int) -> tuple[int, int]:
    return item, os.getpid()


def fails_at_100(item: int) -> int:
    if item == 100:
        raise DataError("item 100")
    return item


def dies_at_100(item: int) -> int:
    if item == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


class Counted(list[int]):
    """A list that knows how far it was read."""

    furthest = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.furthest = max(self.furthest, index.stop)
        return super().__getitem__(index)


@pytest.mark.parametrize("workers, processes", [(1, 1), (2, 2)])
def test_results_come_in_order_from_as_many_processes_as_asked(workers: int, processes: int) -> None:
    results = list(parallel_map(process_of, range(COUNT), workers, "test"))
    assert [item for item, _ in results] == list(range(COUNT))
    pids = {pid for _, pid in results}
    assert len(pids) <= processes
    assert (os.getpid() in pids) == (workers == 1)


def test_work_is_not_read_far_ahead_of_results() -> None:
    items = Counted(range(20 * COUNT))
    results = parallel_map(process_of, items, 2, "test")
    next(results)
    assert 0 < items.furthest <= CHUNK * (2 * CHUNKS_AHEAD + 1)
    results.close()  # type: ignore[attr-defined]


def test_an_error_of_the_function_comes_through() -> None:
    with pytest.raises(DataError, match="item 100"):
        list(parallel_map(fails_at_100, range(COUNT), 2, "test"))


def test_a_killed_process_is_told_and_does_not_hang() -> None:
    with pytest.raises(PneumoniaError, match=r"was killed.*data\.workers="):
        list(parallel_map(dies_at_100, range(COUNT), 2, "test"))


def test_progress_says_pace_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumonia.data.parallel.PROGRESS_SECONDS", 0.0)
    list(parallel_map(process_of, range(3), 1, "prepare"))
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("prepare: 1 of 3 images, ")
    assert second.endswith(" s left")
