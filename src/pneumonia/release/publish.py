"""An immutable release: a Triton model repository, named by the digest of all that it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumonia import __version__, contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.errors import BundleError
from pneumonia.files import sha256_file, write_json

RELEASE_SCHEMA_VERSION = 1


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
    }
    return {"release": release_name(manifest), **manifest}


def release_name(manifest: Mapping[str, Any]) -> str:
    """Hex SHA-256 of what a manifest says, but for the name itself."""
    said = {key: value for key, value in manifest.items() if key != "release"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def release_files(release: Path) -> list[str]:
    """Every file below `release` but the manifest, relative, with forward slashes, sorted.

    Byte code is none of it: a server that imports a model's code may leave some beside it.
    """
    found = (path for path in release.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return sorted({path.relative_to(release).as_posix() for path in found} - {contract.RELEASE_MANIFEST})


def read_release(release: Path) -> dict[str, Any]:
    """What release.json says. Raises BundleError where there is none, or none that this version reads."""
    path = release / contract.RELEASE_MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["schema_version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path}: no readable release manifest ({error!r}); publish the bundle again") from error
    if version != RELEASE_SCHEMA_VERSION:
        raise BundleError(f"{path}: schema version {version}, this version reads {RELEASE_SCHEMA_VERSION}")
    return dict(manifest)


def verify_release(release: Path) -> dict[str, Any]:
    """Compare every file with the manifest; returns the manifest.

    Raises BundleError naming the first file that is missing, changed or not of the release.
    """
    manifest = read_release(release)
    # Releases of versions before the name was of the whole content do not carry it.
    if manifest.get("release", release_name(manifest)) != release_name(manifest):
        raise BundleError(
            f"{release / contract.RELEASE_MANIFEST}: was changed after the release was written; remove {release} and "
            "publish the bundle again"
        )
    listed, present = manifest["files"], set(release_files(release))
    for name in sorted(present | set(listed)):
        problem = None
        if name not in listed:
            problem = "is not part of the release"
        elif name not in present:
            problem = "is missing"
        elif sha256_file(release / name) != listed[name]:
            problem = "was changed after the release was written"
        if problem:
            raise BundleError(
                f"{release / name}: {problem}; a release is immutable, remove {release} and publish the bundle again"
            )
    return manifest
