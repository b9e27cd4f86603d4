"""Fixtures for all tests."""

from __future__ import annotations

import os

# The models of tests are tiny: more threads than one only spin, in children of the tests too. Before anything reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from pathlib import Path

import pytest

pytest_plugins = ["tests.bundles", "tests.phantom_fixtures"]

# A shell starts background jobs with Ctrl-C ignored, and children inherit that; tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parents[1]
XRAYS_ENV = "PNEUMONIA_XRAYS"
XRAYS_DEFAULT = ROOT.parent / "shared" / "data" / "chest-xray-224"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that takes `xrays` carries the marker realdata, so that `-m "not realdata"` leaves none behind."""
    for item in items:
        if "xrays" in getattr(item, "fixturenames", ()):
            item.add_marker("realdata")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def xrays() -> Path:
    """The folder of the real X-rays; skips where it is absent, fails where PNEUMONIA_XRAYS names no folder."""
    given = os.environ.get(XRAYS_ENV)
    folder = Path(given) if given else XRAYS_DEFAULT
    if folder.is_dir():
        return folder.resolve()
    if given:
        pytest.fail(f"{XRAYS_ENV}={given}: no such folder")
    pytest.skip(f"no real X-rays at ../shared/data/chest-xray-224; set {XRAYS_ENV} to a folder of them")
