"""An immutable release: a Triton model repository, named by the digest of all that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumonia import __version__, contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.files import sha256_file, write_json
from pneumonia.release_manifest import RELEASE_SCHEMA_VERSION, release_files, release_name


@dataclass(frozen=True)
class Release:
    """A published release. name: hex SHA-256 of what its manifest says. uri: folder, s3://... or pvc://... of it."""

    name: str
    uri: str
    manifest: Mapping[str, Any]

    @property
    def model_id(self) -> str:
        """Name and digest of the bundle, as the server's answers carry it."""
        return str(self.manifest["model_id"])


def publish(bundle: Path, root: Path, backend: str = "python") -> Path:
    """`publish_release` into a folder; returns the release's folder."""
    return Path(publish_release(bundle, root, backend=backend).uri)


def publish_release(
    bundle: Path, root: str | Path, *, backend: str = "python", served_from: str | None = None
) -> Release:
    """Write <root>/releases/<release>/ : <model>/config.pbtxt, <model>/1/..., release.json last.

    root: a folder, or s3://bucket/prefix. backend: of the tensor model, as in `write_repository`. served_from: what a
    server calls `root` where that differs, such as pvc://claim for the volume mounted there. The release is named by
    its content: bundle, library version and every file. A complete one is compared and left alone, a half-written one
    is completed. Raises BundleNotFound or BundleError for the bundle, BundleError for a release that was changed after
    it was written, MissingPrerequisite where a store refuses or does not answer.
    """
    from pneumonia.release.stores import open_store
    from pneumonia.triton.repository import write_repository

    opened = open_bundle(bundle)
    # The server needs the graph; say so before anything is written.
    opened.file(contract.ONNX_FILE)
    store = open_store(root)
    with store.building() as building:
        write_repository(opened, building, backend)
        manifest = _manifest(opened, building, backend)
        name = str(manifest["release"])
        write_json(building / contract.RELEASE_MANIFEST, manifest)
        store.write(name, building)
    uri = f"{served_from.rstrip('/')}/{contract.RELEASES_DIR}/{name}" if served_from else store.uri(name)
    return Release(name, uri, manifest)


def _manifest(bundle: Bundle, building: Path, backend: str) -> dict[str, Any]:
    manifest = {
        "schema_version": RELEASE_SCHEMA_VERSION,
        "digest": bundle.digest,
        "model_id": bundle.model_id,
        "synthetic": bundle.manifest.synthetic,
        "library_version": __version__,
        "backend": backend,
        "models": sorted(path.name for path in building.iterdir()),
        "files": {name: sha256_file(building / name) for name in release_files(building)},
        **({"kubeflow_run": bundle.manifest.kubeflow_run} if bundle.manifest.kubeflow_run else {}),
    }
    return {"release": release_name(manifest), **manifest}
