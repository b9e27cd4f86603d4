"""How many cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

THREADS_ENV = "OMP_NUM_THREADS"


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use, at least 1: those of its affinity, within its container's CPU limit, rounded up.

    Libraries that count the machine's cores start more threads than a container may run; those wait for each other
    while some are held back.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _limit(cgroup))))


def compute_threads() -> int:
    """Threads for one model: OMP_NUM_THREADS, which ONNX Runtime itself does not read, or the usable cores."""
    given = os.environ.get(THREADS_ENV, "")
    return int(given) if given.isdigit() and int(given) > 0 else usable_cores()


def _limit(cgroup: Path) -> float:
    """The container's CPU limit in cores, by cgroup version 2 or 1; infinite where there is none."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text("ascii").split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # "max" is no number
        return math.inf
