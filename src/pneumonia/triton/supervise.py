"""Stands over a Triton server in a container: ends it when one of its processes is lost, and lets it end in peace.

Triton goes on without a model's process that was killed, answers 500 from then on and calls itself healthy. This is the
container's first process instead, and its exit is what the kubelet, or Docker, answers with a new server.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from pneumonia import contract
from pneumonia.triton.drain import drain
from pneumonia.triton.watch import LOOK_EVERY_S, Watch, end_group

EXIT_TIMEOUT_S = 30.0
"""Triton's own for --exit-timeout-secs."""
LOST = 70
"""Exit code where a process of the server was lost: EX_SOFTWARE."""
_PR_SET_PDEATHSIG = 1
_SHARED_MEMORY = Path("/dev/shm")
_PREFIX_SETTING = "shm-region-prefix-name"


def supervise(command: list[str]) -> int:
    """Run tritonserver's command until it ends or SIGTERM or SIGINT comes; the exit code.

    Raises OSError where it cannot be run.
    """
    if any(_PREFIX_SETTING in part for part in command):
        return _supervise(command)  # Whoever chose the prefix removes what is left under it.
    prefix = f"pneumonia-triton.{os.getpid()}."
    # A server that was killed leaves its shared memory, and in a pod that outlives the container.
    _unlink(prefix)
    try:
        return _supervise([*command, f"--backend-config=python,{_PREFIX_SETTING}={prefix}"])
    finally:
        _unlink(prefix)


def _unlink(prefix: str) -> None:
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            region.unlink()


def _supervise(command: list[str]) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    process = subprocess.Popen(
        command, start_new_session=True, preexec_fn=functools.partial(_end_with, ctypes.CDLL(None), os.getpid())
    )
    watch = Watch(process.pid)
    while not stop.wait(LOOK_EVERY_S):
        if (code := process.poll()) is not None:
            end_group(process.pid)
            return code if code >= 0 else 128 - code
        if trouble := watch.trouble():
            print(f"error: {trouble}; the server ends, to be started again", file=sys.stderr, flush=True)
            end_group(process.pid)
            process.wait()
            return LOST
    metrics = ("127.0.0.1", int(_flag(command, "metrics-port", contract.METRICS_PORT)))
    return drain(process, metrics, float(_flag(command, "exit-timeout-secs", EXIT_TIMEOUT_S)) + 2)


def _flag(command: list[str], name: str, default: float) -> str:
    """The last value of --name in a command, as Triton takes it."""
    given = [part.partition("=")[2] for part in command if part.startswith(f"--{name}=")]
    return given[-1] if given else str(default)


def _end_with(libc: ctypes.CDLL, parent: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
