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
    root: str = typer.Option(..., help="Folder or s3://bucket/prefix that gets releases/<digest>."),
    backend: str = typer.Option("python", help="Of the tensor model: python, onnxruntime, tensorrt."),
    served_from: str | None = typer.Option(None, help="What servers call the root, such as pvc://claim for a volume."),
    tracking_uri: str | None = typer.Option(None, help="MLflow whose registry gets the alias candidate."),
    registered_model: str = typer.Option("pneumonia", help="Name of the model in the registry."),
) -> None:
    """Write a bundle's immutable release, a complete Triton model repository; prints where it is as JSON.

    Publishing the same bundle with the same version again verifies the release and changes nothing. For S3: endpoint
    and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).
    """
    from pneumonia.bundle import default_bundle
    from pneumonia.release.publish import publish_release
    from pneumonia.release.registry import CANDIDATE, set_alias

    release = publish_release(bundle or default_bundle(), root, backend=backend, served_from=served_from)
    digest = str(release.manifest["digest"])
    version = set_alias(tracking_uri, registered_model, release.uri, CANDIDATE, digest)
    registered = {} if version is None else {"registered_version": version}
    print(json.dumps({"release": release.uri, "model_id": release.model_id, "digest": digest, **registered}))
