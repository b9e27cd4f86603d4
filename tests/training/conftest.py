"""One prepared data set for all training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumonia.data.prepare import PreparedData
from tests.phantoms import prepared_phantoms


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """240 phantoms."""
    return prepared_phantoms(Path(tmp_path_factory.mktemp("phantoms")))
