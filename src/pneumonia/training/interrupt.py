"""Ctrl-C and SIGTERM during training: stop after the step at hand, with a checkpoint of it."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Asks the Trainer to save and stop at the first signal; a second one interrupts at once.

    requested: whether a signal came. Signals are taken from the main thread alone, as Python delivers them there.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _take(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("train: stopping after this step to keep a checkpoint; once more to stop at once", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Trainer takes a stop for the end of an epoch. An evaluation of half an epoch could win over whole ones, which
        # the uninterrupted run would not have seen; that of a whole one belongs to both.
        if self.requested and abs(state.epoch - round(state.epoch)) > 1e-6:
            control.should_evaluate = control.should_log = control.should_save = False
