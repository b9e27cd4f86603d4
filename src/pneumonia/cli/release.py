"""`pneumoctl publish`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

_BUNDLE = typer.Option(None, help="Bundle to publish; default: $PNEUMONIA_BUNDLE or ./models.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("publish")(publish)


def publish(
    bundle: Path | None = _BUNDLE,
    root: Path = typer.Option(..., help="Folder that gets releases/<bundle digest>."),
) -> None:
    """Write a bundle's immutable release, a complete Triton model repository; prints its folder as JSON.

    Publishing the same bundle again verifies the release and changes nothing.
    """
    from pneumonia.bundle import default_bundle
    from pneumonia.release.publish import publish as publish_bundle
    from pneumonia.release.publish import read_release

    release = publish_bundle(bundle or default_bundle(), root)
    manifest = read_release(release)
    print(json.dumps({"release": str(release), "model_id": manifest["model_id"], "digest": manifest["digest"]}))
