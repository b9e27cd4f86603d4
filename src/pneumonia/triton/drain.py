"""Ends a Triton server once nobody waits for an answer, which connections that are merely kept open would prevent."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import time

from pneumonia import contract
from pneumonia.triton.watch import LOOK_EVERY_S, end_group

QUIET_S = 2.0
"""Nothing running or waiting for so long means that the last answer is out and nobody sends another request."""


def drain(process: subprocess.Popen[bytes], metrics: tuple[str, int], timeout_s: float) -> int:
    """SIGTERM, then the end as soon as all requests are answered, at the latest after timeout_s; the exit code.

    metrics: host and port of the server's metrics. The server leads a process group of its own. 0 where it ended by
    itself without an error, or had nothing left to answer.
    """
    process.terminate()
    began = quiet_since = time.monotonic()
    quiet = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(LOOK_EVERY_S)
            end_group(process.pid)
            return 0 if quiet and code > 0 else code
        now = time.monotonic()
        if _busy(*metrics):
            quiet_since = now
        quiet = now - quiet_since >= QUIET_S
        if quiet or now - began >= timeout_s:
            end_group(process.pid)
            process.wait()
            return 0 if quiet else 1


def _busy(host: str, port: int) -> bool:
    """Whether a request runs or waits; True where the server says nothing of it."""
    connection = http.client.HTTPConnection(host, port, timeout=1)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode("utf-8", "replace").splitlines()
    except (OSError, http.client.HTTPException):
        return True
    finally:
        connection.close()
    values = [(line, line.rpartition(" ")[2]) for line in lines]
    running = [value for line, value in values if line.startswith(contract.METRIC_RUNNING)]
    waiting = [value for line, value in values if line.startswith(contract.METRIC_PENDING + "{")]
    return not running or any(float(value) > 0 for value in running + waiting)
