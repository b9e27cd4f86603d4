"""Where images come from, one file a source; this table knows them all."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from pneumonia.config.schema import DataConfig
from pneumonia.errors import ConfigError, DataError
from pneumonia.files import cannot_write, remove_remains

SOURCES = {
    "phantom": "synthetic radiographs drawn here: no account, no download, no patient",
    "folder": "your own images: data.root=<folder of NORMAL and PNEUMONIA folders, or with a labels.csv>",
    "kaggle": "Chest X-Ray Images (Pneumonia), 5,856 X-rays of children: needs a Kaggle account",
    "medmnist": "PneumoniaMNIST, the same X-rays cropped to squares, with their published split and no patients",
}
"""Each name is a module beside this file with `fetch(config: DataConfig, out: Path) -> None` and `version(config)`."""

SOURCE_FILE = "source.json"
"""{"source", "synthetic", "root"}: root is the folder of the images, "." for the fetched folder itself; with
"published_split": true, images that name no patients and are divided already."""


def fetch(config: DataConfig, out: Path) -> Path:
    """Bring the images of `config.source` to `out`, or note there where they are; returns `out`.

    Nothing is done where they are there already. Raises ConfigError, listing the sources, where none is chosen,
    DataError where `out` holds files that no fetch has put there, and StorageError where it cannot be written.
    """
    source = _module(config)
    try:
        remove_remains(out)
        source.fetch(config, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    return out


def version_of(config: DataConfig) -> str:
    """Changes when the images of `config.source` change, as far as that shows without a download.

    Raises ConfigError where no source is chosen, and DataError for a folder without usable images.
    """
    return f"{config.source} {_module(config).version(config)}"


def _module(config: DataConfig) -> Any:
    if config.source is None:
        listed = "; ".join(f"data={name}: {what}" for name, what in SOURCES.items())
        raise ConfigError(f"no data source chosen; choose one of {listed}")
    return importlib.import_module(f"pneumonia.data.sources.{config.source}")


def read_source(fetched: Path) -> dict[str, Any]:
    """The content of SOURCE_FILE. Raises DataError where it is missing or damaged."""
    try:
        source = json.loads((fetched / SOURCE_FILE).read_text("utf-8"))
        return {**source, "source": str(source["source"]), "synthetic": bool(source["synthetic"]),
                "root": str(source["root"])}  # fmt: skip
    except FileNotFoundError as error:
        raise DataError(
            f"{fetched}: nothing fetched here; run `pneumoctl data fetch data=phantom` or give another source: "
            f"{', '.join(SOURCES)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{fetched / SOURCE_FILE}: damaged ({error}); delete it and fetch again") from error


def check_replaceable(out: Path, source: str) -> None:
    """Raises DataError where `out` holds more than a SOURCE_FILE and is no earlier fetch of `source` or drawing."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; choose another folder with data.raw_dir=")
    others = sorted(entry.name for entry in out.iterdir() if entry.name != SOURCE_FILE)
    if others and (not (out / SOURCE_FILE).is_file() or read_source(out)["source"] not in (source, "phantom")):
        raise DataError(
            f"{out}: holds files that this did not fetch, such as {', '.join(others[:3])}, and would be replaced; "
            "choose an empty folder with data.raw_dir="
        )
