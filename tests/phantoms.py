"""Small prepared data sets of phantoms, for tests."""

from __future__ import annotations

from pathlib import Path

from pneumonia.config.compose import compose
from pneumonia.config.schema import Config
from pneumonia.data.prepare import PreparedData, prepare
from pneumonia.data.sources import fetch

SMOKE = ("experiment=smoke", "data=phantom", "data.num_images=240", "data.workers=2", "tracking.uri=null")
OPEN_GATE = (
    *(f"gate.{name}=0" for name in ("accuracy", "precision", "recall", "f1", "recall_low")),
    *(f"gate.{name}=null" for name in ("specificity", "auroc", "ece")),
)


def smoke_config(folder: Path, *overrides: str) -> Config:
    """experiment=smoke on 240 phantoms, everything it writes under `folder`."""
    return compose([*SMOKE, f"output_dir={folder / 'runs'}", *overrides])


def prepared_phantoms(folder: Path, *overrides: str) -> PreparedData:
    """240 phantoms, fetched and prepared under `folder`."""
    config = smoke_config(folder, *overrides)
    return prepare(config, fetch(config.data, folder / "raw"), folder / "prepared")
