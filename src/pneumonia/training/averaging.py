"""A running average of the weights, which generalises better than the last step's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

AVERAGE_FILE = "averaged.safetensors"
EVERY = 4
"""Optimiser steps between two that are taken in. All of them would cost a small model 3 % of its throughput."""


class WeightAverage:
    """Exponential moving average of all floating-point weights and batch statistics of a model.

    decay: weight of the past after one step, 0 <= decay < 1; 0 follows the model exactly. The first steps use a smaller
    decay, (1 + n) / (10 + n), so that the random initialisation is forgotten (as in Szegedy et al. 2015,
    arXiv:1512.00567). After the first EVERY steps, the weights of each EVERY-th one stand for those since the last.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        # Collected once: walking through all modules at every step takes as long as a third of the update itself.
        self._followed = _floating(model)
        self.values = {name: value.clone() for name, value in self._followed.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model's weights after optimiser step `step`, counted from 1, where it is one of those taken."""
        span = 1 if step <= EVERY or not self.decay else EVERY
        if step % span:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) ** span
        torch._foreach_lerp_(list(self.values.values()), list(self._followed.values()), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        """Give the model the averaged weights."""
        for name, value in _floating(model).items():
            value.copy_(self.values[name])

    @contextlib.contextmanager
    def swapped_in(self, model: torch.nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards."""
        own = {name: value.detach().clone() for name, value in _floating(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in _floating(model).items():
                    value.copy_(own[name])

    def save(self, folder: Path) -> None:
        """Write the average beside a checkpoint."""
        save_file({name: value.contiguous() for name, value in self.values.items()}, folder / AVERAGE_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        loaded = load_file(folder / AVERAGE_FILE)
        for name, value in self.values.items():
            value.copy_(loaded[name])


def _floating(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its floating-point weights and statistics: the memory that they lie in, not copies."""
    return {name: value for name, value in model.state_dict().items() if value.dtype.is_floating_point}
