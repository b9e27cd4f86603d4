"""Whether mixed precision is worth it on this machine."""

from __future__ import annotations

import torch


def use_bf16(precision: str, cuda: bool) -> bool:
    """Whether to train in bfloat16. On a processor without the instructions it is emulated, many times slower."""
    if precision != "auto":
        return precision == "bf16"
    if cuda:
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
