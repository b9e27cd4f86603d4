"""What makes a Triton server hard to break: closed endpoints, room on the stack, metrics; however it is started.

    python -m pneumonia.triton.hardening [--allow-shared-memory] tritonserver --model-repository=/mnt/models ...

runs the command given, with `hardening_flags` behind it and under `limit_process`, and stands over it (`supervise`),
for an image to start with.
"""

from __future__ import annotations

import os
import resource
import secrets
import sys
from typing import NoReturn

from pneumonia.triton.supervise import supervise

CLOSED = ("model-repository", "shared-memory", "trace", "logging")
"""Triton's groups of endpoints that change the server or reach its memory. What stays open only reads or infers."""
_SECRET_HEADER = "pneumonia-secret"
STACK_BYTES = 256 * 2**20
"""Triton 2.51 keeps 16 bytes on the stack for each chunk of a chunked body, and recurses on nested JSON. With Linux's
usual 8 MiB a million chunks (6 MB sent) end the server; this holds 32 times as much. Only what is touched is used."""


def hardening_flags(allow_shared_memory: bool = False) -> list[str]:
    """Arguments for tritonserver, the same wherever it runs.

    The groups of CLOSED answer only to a header with a random secret that nobody is told, anew at every start.
    allow_shared_memory: leave that group open. A client that names memory of this machine reads and writes it, so only
    where every client is trusted.
    """
    closed = ",".join(group for group in CLOSED if not (allow_shared_memory and group == "shared-memory"))
    lock = f"{closed}:{_SECRET_HEADER}={secrets.token_hex(32)}"
    return [
        # Models come from the release and from nowhere else while it runs.
        "--model-control-mode=none",
        f"--http-restricted-api={lock}",
        f"--grpc-restricted-protocol={lock}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        # Quantiles of each step's time over the last minute, beside the counters.
        "--metrics-config=summary_latencies=true",
    ]


def limit_process() -> None:
    """Raise this process's stack limit to STACK_BYTES, as far as its hard limit lets it; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


def become(command: list[str], allow_shared_memory: bool = False) -> NoReturn:
    """Run tritonserver's command, hardened and watched, and exit as it does; with a sentence where it cannot be run."""
    limit_process()
    # The models' byte code would be written into the release.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        sys.exit(supervise([*command, *hardening_flags(allow_shared_memory)]))
    except OSError as error:
        sys.exit(f"error: {command[0]}: {error.strerror}")


def main() -> None:
    """Run the command of the arguments, hardened."""
    command = sys.argv[1:]
    allow_shared_memory = command[:1] == ["--allow-shared-memory"]
    command = command[allow_shared_memory:]
    if not command:
        sys.exit("usage: python -m pneumonia.triton.hardening [--allow-shared-memory] COMMAND...")
    become(command, allow_shared_memory)


if __name__ == "__main__":
    main()
