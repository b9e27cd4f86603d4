"""What the chart's tests share. The chart is rendered by Helm's own engine, which helm-python-sdk carries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

for package in ("helm_python", "kubernetes_validate", "jsonschema"):
    pytest.importorskip(package, reason=f"{package} is not installed: `make setup`")

import helm_check  # noqa: E402  tools/ is no package: its scripts run alone


@pytest.fixture(scope="session")
def crds() -> Path:
    """Folder of CustomResourceDefinitions; skips where there is none."""
    if not any(helm_check.CRDS.glob("serving.kserve.io_*.yaml")):
        pytest.skip(f"no CustomResourceDefinitions in {helm_check.CRDS}; PNEUMONIA_CRDS names another folder")
    return helm_check.CRDS


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    root: dict[str, Any] = {}
    for path, value in settings.items():
        *parents, name = path.split(".")
        place = root
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return root


def only(items: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one object of a kind."""
    (found,) = [item for item in items if item["kind"] == kind]
    return found
