"""What the C library does with memory that a training step has freed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""glibc takes no more on 64 bits (malloc/malloc.c, DEFAULT_MMAP_THRESHOLD_MAX)."""
_KEPT = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step instead of giving it back; whether this C library can.

    Each step frees all activations and asks for as much again. glibc gives part of them back to the system in between,
    which then has to fill thousands of pages with zeros at every step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # Not glibc: musl, macOS, Windows.
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
