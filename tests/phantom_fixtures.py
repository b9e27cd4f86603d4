"""Fixtures of phantoms, made once for all tests that need them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from pneumonia.data.prepare import PreparedData
from tests.phantoms import prepared_phantoms, smoke_config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """240 phantoms."""
    return prepared_phantoms(Path(tmp_path_factory.mktemp("phantoms")))


@pytest.fixture(scope="session")
def trained(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a few training steps on `prepared`."""
    from pneumonia.training.train import train

    folder = Path(tmp_path_factory.mktemp("trained"))
    return train(smoke_config(folder), prepared.path, folder / "run" / "bundle")
