"""A small folder of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xray_folders import kaggle_names, write_images


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """A flat folder of 96 images of 24 healthy and 48 ill patients, in the names of the Kaggle set."""
    return write_images(tmp_path / "xrays", kaggle_names())
