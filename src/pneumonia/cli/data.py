"""`pneumoctl data fetch` and `pneumoctl data prepare`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

_OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="Configuration, such as data=folder data.root=FOLDER.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(help="Bring images here and prepare them for training.", no_args_is_help=True)
    group.command("fetch")(fetch)
    group.command("prepare")(prepare)
    app.add_typer(group, name="data")


def fetch(overrides: list[str] | None = _OVERRIDES) -> None:
    """Bring the images of a source to data.raw_dir, or note there where they are.

    data=phantom draws synthetic radiographs; data=folder data.root=FOLDER takes your own; data=kaggle and data=medmnist
    download public ones and go on where a download was cut off. Prints one JSON line.
    """
    from pneumonia.config.compose import compose
    from pneumonia.data.sources import fetch as run_fetch
    from pneumonia.data.sources import read_source

    config = compose(overrides or [])
    fetched = run_fetch(config.data, Path(config.data.raw_dir))
    source = read_source(fetched)
    print(json.dumps({"path": str(fetched), "source": source["source"], "synthetic": source["synthetic"]}))


def prepare(overrides: list[str] | None = _OVERRIDES) -> None:
    """Decode, drop exact duplicates, find patients and split into data.prepared_dir; instant when nothing changed.

    Fetches first where a source is given, else takes what data.raw_dir holds. Prints one JSON line.
    """
    from pneumonia.config.compose import compose
    from pneumonia.data.prepare import prepare as run_prepare
    from pneumonia.data.sources import fetch as run_fetch

    config = compose(overrides or [])
    raw = Path(config.data.raw_dir)
    if config.data.source is not None:
        run_fetch(config.data, raw)
    data = run_prepare(config, raw, Path(config.data.prepared_dir))
    keys = ("digest", "source", "synthetic", "patients", "counts")
    print(json.dumps({"path": str(data.path), **{key: data.manifest[key] for key in keys}}))
