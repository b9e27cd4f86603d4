"""One function over many items on all cores: results in order, bounded memory, progress on stderr."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from pneumonia.core.cores import usable_cores
from pneumonia.errors import PneumoniaError

CHUNK = 16
CHUNKS_AHEAD = 4
"""Chunks a process works ahead of the reader; with CHUNK it bounds how many results wait in memory."""
ITEMS_PER_PROCESS = 64
"""Starting a process costs about as much as this many images."""
PROGRESS_SECONDS = 2.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, step: str, unit: str = "images"
) -> Iterator[Result]:
    """function(item) of each item, in the order of the items.

    function: importable by name, because the processes are spawned. workers: processes, 0 for one a core; few items
    run in this process. step, unit: for the progress lines. Raises what `function` raises, and PneumoniaError where a
    process was killed.
    """
    started = said = time.monotonic()
    for done, result in enumerate(_results(function, items, workers), start=1):
        yield result
        now = time.monotonic()
        if now - said >= PROGRESS_SECONDS and done < len(items):
            said, pace = now, done / (now - started)
            left = (len(items) - done) / pace
            print(f"{step}: {done} of {len(items)} {unit}, {pace:.0f} a second, {left:.0f} s left", file=sys.stderr)


def _results(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    processes = min(workers or usable_cores(), len(items) // ITEMS_PER_PROCESS)
    if processes <= 1:
        yield from map(function, items)
        return
    # spawn: a forked child of a process that runs threads (torch, gRPC) can hang.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    waiting = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    running: deque[Future[list[Result]]] = deque()
    try:
        for chunk in islice(waiting, processes * CHUNKS_AHEAD):
            running.append(pool.submit(_apply, function, chunk))
        while running:
            results = running.popleft().result()
            for chunk in islice(waiting, 1):
                running.append(pool.submit(_apply, function, chunk))
            yield from results
    except BrokenProcessPool as error:
        raise PneumoniaError(
            f"one of {processes} processes was killed, most likely for lack of memory; use fewer with data.workers="
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _follow_parent() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone answers it. When it is killed, end as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A process of the pool waits for work on a pipe that its siblings hold open, so it would wait for ever.
    parent.join()
    os._exit(1)
