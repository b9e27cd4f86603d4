"""A tiny bundle that is real: its ONNX graph runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from tests.bundles import tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """One for each test, because some of them damage it."""
    return tiny_bundle(tmp_path / "bundle", name="brightness")
