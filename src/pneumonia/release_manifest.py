"""What release.json says of a release, and whether the files beside it are those it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.errors import BundleError
from pneumonia.files import sha256_file

RELEASE_SCHEMA_VERSION = 1
_EMPTY = hashlib.sha256(b"").hexdigest()


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
            # KServe's storage initializer drops what is empty; the server makes do without it.
            problem = None if listed[name] == _EMPTY else "is missing"
        elif sha256_file(release / name) != listed[name]:
            problem = "was changed after the release was written"
        if problem:
            raise BundleError(
                f"{release / name}: {problem}; a release is immutable, remove {release} and publish the bundle again"
            )
    return manifest


def release_name_of(uri: str) -> str:
    """The release that a URI names: its last part."""
    return uri.rstrip("/").rpartition("/")[2]
