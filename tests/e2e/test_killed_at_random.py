"""kill -9 of training and export many times: as in tests/faults, where it is done a few times.

PNEUMONIA_KILLS sets how often, 12 by default; 50 of each take about ten minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from pneumonia.data.prepare import PreparedData
from tests.faults import steps
from tests.faults.killed import survives

ROUNDS = int(os.environ.get("PNEUMONIA_KILLS", "12"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_train(prepared: PreparedData, tmp_path: Path) -> None:
    versions = ((prepared.path, 1), (prepared.path, 2))
    survives(tmp_path / "work", steps.train_step, versions, steps.trained, ROUNDS, seed=14)


def test_export(trained: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    survives(tmp_path / "work", *steps.export(trained, prepared, tmp_path), ROUNDS, seed=15)
