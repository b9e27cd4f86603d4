"""Where images come from, one file a source; this table knows them all."""

from __future__ import annotations

import importlib
from pathlib import Path

from pneumonia.config.schema import DataConfig
from pneumonia.errors import ConfigError

SOURCES = {
    "phantom": "synthetic radiographs drawn here: no account, no download, no patient",
    "folder": "your own images: data.root=<folder of NORMAL and PNEUMONIA folders, or with a labels.csv>",
}
"""Each name is a module beside this file with `fetch(config: DataConfig, out: Path) -> None`."""

SOURCE_FILE = "source.json"
"""{"source", "synthetic", "root"}: root is the folder of the images, "." for the fetched folder itself."""


def fetch(config: DataConfig, out: Path) -> Path:
    """Bring the images of `config.source` to `out`, or note there where they are; returns `out`.

    Raises ConfigError, listing the sources, where none is chosen.
    """
    if config.source is None:
        listed = "; ".join(f"data={name}: {what}" for name, what in SOURCES.items())
        raise ConfigError(f"no data source chosen; choose one of {listed}")
    importlib.import_module(f"pneumonia.data.sources.{config.source}").fetch(config, out)
    return out
