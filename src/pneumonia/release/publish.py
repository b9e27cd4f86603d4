"""An immutable release: a Triton model repository named by the digest of the bundle it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pneumonia import __version__, contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.errors import BundleError
from pneumonia.files import remove_remains, replace_directory, sha256_file, write_json

RELEASE_SCHEMA_VERSION = 1


def publish(bundle: Path, root: Path) -> Path:
    """Write <root>/releases/<bundle digest>/ and return it: <model>/config.pbtxt, <model>/1/..., release.json last.

    A release that is there already is verified and left alone; a half-written one, without release.json, is replaced.
    Raises BundleNotFound or BundleError for the bundle, BundleError for a release that was changed after it was
    written.
    """
    opened = open_bundle(bundle)
    # The server needs the graph; say so before anything is written.
    opened.file(contract.ONNX_FILE)
    target = root / contract.RELEASES_DIR / opened.digest
    remove_remains(target)
    if (target / contract.RELEASE_MANIFEST).exists():
        verify_release(target)
        return target
    try:
        _write(opened, target)
    except OSError:
        # Someone else published the same bundle meanwhile, which is as good.
        if not (target / contract.RELEASE_MANIFEST).exists():
            raise
        verify_release(target)
    return target


def _write(bundle: Bundle, target: Path) -> None:
    from pneumonia.triton.repository import write_repository

    with replace_directory(target) as building:
        write_repository(bundle, building)
        manifest = {
            "schema_version": RELEASE_SCHEMA_VERSION,
            "digest": bundle.digest,
            "model_id": bundle.model_id,
            "synthetic": bundle.manifest.synthetic,
            "library_version": __version__,
            "models": sorted(path.name for path in building.iterdir()),
            "files": {name: sha256_file(building / name) for name in _files(building)},
        }
        write_json(building / contract.RELEASE_MANIFEST, manifest)


def _files(release: Path) -> list[str]:
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
    listed, present = manifest["files"], set(_files(release))
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
