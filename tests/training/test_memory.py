"""Memory that a step frees stays with the process for the next step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from pneumonia.training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        # As a step does: blocks of 8 MiB, more in all than glibc keeps by itself, all freed at its end.
        blocks = [torch.ones(2048, 1024) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_freed_memory_is_not_asked_for_again() -> None:
    # Left to itself glibc adapts, in a way that differs from run to run; so it starts from what it starts with.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    faults = {}
    for how in ("keep", "plain"):
        command = [sys.executable, "-c", CODE, how]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 100 < faults["plain"]
