"""Functions in processes of their own that are killed for good."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

# A process that forks children must not have threads, and pytest's has those of every library that was imported.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pneumonia.release.publish", "pneumonia.release.stores", "pneumonia.triton.repository", "boto3"]
)


def killed(target: Callable[..., None], *arguments: Any) -> bool:
    """Run `target` in a process of its own, with this one's environment; whether SIGKILL ended it."""
    child = _CONTEXT.Process(target=_run, args=(dict(os.environ), target, *arguments))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"the child ended with {child.exitcode}"
    return child.exitcode != 0


def _run(environment: dict[str, str], target: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(environment)
    target(*arguments)


def die() -> None:
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
