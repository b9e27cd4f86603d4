"""Runs a step over and over in a child that is killed with SIGKILL at a seeded moment, and looks at what is left."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.children import start

_EVENTS = ("open", "os.", "shutil.", "tempfile.", "ctypes.dlopen")
"""Of sys.addaudithook: what a process does to files, and the library call with which folders change places."""


@dataclass
class _Hook:
    """Counts what the process does to files below `folder` and kills it just before number `fatal`."""

    folder: str
    fatal: int
    count: int = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_EVENTS) and (event.startswith("ctypes") or any(map(self._below, arguments))):
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    def _below(self, argument: Any) -> bool:
        return isinstance(argument, str | bytes | os.PathLike) and os.fsdecode(argument).startswith(self.folder)


def _run(folder: Path, fatal: int, counted: Path, step: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sys.stderr = sys.stdout = counted.with_suffix(".log").open("w")
    hook = _Hook(str(folder), fatal)
    sys.addaudithook(hook)
    step(folder, *arguments)
    if fatal == 0:
        counted.write_text(str(hook.count))


def survives(
    folder: Path,
    step: Callable[..., Any],
    versions: tuple[tuple[Any, ...], tuple[Any, ...]],
    state: Callable[[Path], Any],
    rounds: int,
    seed: int,
    before: Callable[[Path], None] = lambda folder: None,
) -> None:
    """step(folder, *version) for one version and the other in turn, killed `rounds` times.

    state(folder): what is there; it raises where something is half written. before(folder): goes before every round,
    for steps that do nothing where their work is done. Asserts that after every
    kill the state is the old or the new one, and that a second run completes and leaves no file that a whole run does
    not leave.
    """
    rng = np.random.default_rng(seed)
    counted = folder.parent / f"{folder.name}.count"
    whole = []
    for version in versions:
        folder.mkdir(exist_ok=True)
        before(folder)
        began = time.monotonic()
        complete(folder, counted, step, version)
        whole.append((state(folder), int(counted.read_text()), time.monotonic() - began, names(folder)))
    seen = {"old": 0, "new": 0}
    for number in range(4 * rounds):
        if sum(seen.values()) == rounds:
            break
        before(folder)
        old, (new, events, seconds, left) = state(folder), whole[number % 2]
        # A random time; just before anything is done to a file; before one of the last things, where a random time
        # would seldom strike and the new content takes the old one's place.
        first = (None, 1, max(1, events - 9))[number % 3]
        fatal = int(rng.integers(first, events + 1)) if first else 0
        process = start(_run, folder, fatal, counted, step, versions[number % 2])
        if fatal == 0:
            process.join(rng.uniform(0, seconds))
            process.kill()
        process.join(120)
        found = state(folder)
        where = f"round {number}, event {fatal} of {events}"
        assert process.exitcode in (0, -signal.SIGKILL), where
        assert found in (old, new), where
        if process.exitcode != 0:  # else it was faster than the kill
            seen["new" if found == new else "old"] += 1
        complete(folder, counted, step, versions[number % 2])
        assert state(folder) == new, where
        assert names(folder) == left, where
    print(f"{step.__name__}: killed {rounds} times, {seen}")
    assert sum(seen.values()) == rounds
    assert seen["old"] > 0, "no kill struck before the new state was there, so this showed nothing"


def complete(folder: Path, counted: Path, step: Callable[..., Any], version: tuple[Any, ...]) -> None:
    """A run to the end."""
    process = start(_run, folder, 0, counted, step, version)
    process.join(240)
    assert process.exitcode == 0, counted.with_suffix(".log").read_text()


def names(folder: Path) -> set[str]:
    """Names two levels deep, without what is named by content."""
    return {path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*"))}
