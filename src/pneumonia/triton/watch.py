"""Notices that a process of a Triton server is gone or stands still, which Triton itself does not tell anybody."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

LOOK_EVERY_S = 0.25
STANDING_LOOKS = 4
"""Looks in a row at which a process has to be stopped before it counts as frozen; a debugger stops it for less."""
_PROC = Path("/proc")
_STUB = "triton_python_"
"""How the name of a model's process begins; Linux cuts it off at 15 characters."""


class Watch:
    """Of one server: every model process that was ever seen has to stay, and neither they nor the server may stop."""

    def __init__(self, server: int) -> None:
        self.server = server
        self._seen: set[int] = set()
        self._standing: dict[int, int] = {}

    def trouble(self) -> str | None:
        """What is wrong now, None where all is well. To be asked every LOOK_EVERY_S."""
        states = {self.server: _stat(self.server)} | {process: _stat(process) for process in children(self.server)}
        # The server never asks how its models ended, so they stay as zombies.
        if ended := [p for p, (name, state) in states.items() if name.startswith(_STUB) and state in "ZX"]:
            return f"a model's process ({ended[0]}) was ended from outside or crashed"
        models = {p for p, (name, state) in states.items() if name.startswith(_STUB) and state not in "ZX"}
        if gone := self._seen - models:
            return f"a model's process ({min(gone)}) was ended from outside or crashed"
        self._seen |= models
        self._standing = {p: self._standing.get(p, 0) + 1 for p in {self.server, *models} if states[p][1] in "Tt"}
        for process, looks in self._standing.items():
            if looks >= STANDING_LOOKS:
                return f"{'the server' if process == self.server else 'a model'}'s process ({process}) stands still"
        return None


def end_group(server: int) -> None:
    """SIGKILL to the server and its model processes: none may outlive it. It leads a process group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server, signal.SIGKILL)


def _stat(process: int) -> tuple[str, str]:
    """Name and state; the latter X where there is no such process."""
    try:
        text = (_PROC / str(process) / "stat").read_text("utf-8", "replace")
    except OSError:
        return "", "X"
    name, _, fields = text.partition("(")[2].rpartition(")")
    return name, fields.split()[0]


def children(parent: int) -> list[int]:
    """Direct children, by the parent that each process names: not every kernel keeps a list of them."""
    found = []
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found
