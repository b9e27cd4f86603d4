"""Training in several processes, as torchrun starts them: who writes, who waits."""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes train together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files, records and results."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Return when every process is here; at once where there is one."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.barrier()
