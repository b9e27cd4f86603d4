"""The model bundle: one folder that describes itself; read, write, verify."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.core.prediction import OperatingPoint
from pneumonia.core.preprocess import Preprocessing
from pneumonia.errors import BundleError, BundleNotFound
from pneumonia.files import check_replaceable, printable, replace_directory, sha256_file, write_json

_FILES = frozenset(
    {
        contract.WEIGHTS_FILE,
        contract.MODEL_CONFIG_FILE,
        contract.ONNX_FILE,
        contract.INT8_FILE,
        contract.FP16_FILE,
        contract.ENGINE_FILE,
        contract.PROBE_FILE,
        contract.CARD_FILE,
    }
)
"""All that a bundle may hold: no file that is code, or that runs code when it is opened, as pickles do."""


_SEAL = "sha256"
"""The key of bundle.json with the digest of its other keys; manifests written before it existed have none."""


@dataclass(frozen=True)
class Manifest:
    """What bundle.json says.

    temperature, offset, threshold, sure: as in OperatingPoint; the threshold was chosen for `recall_target` on
    validation. metrics: by split, as the evaluation wrote them. data: digest, source, synthetic, patients, split.
    config: the resolved configuration of the training run. versions: of the libraries it ran with. files: SHA-256 by
    file name. kubeflow_run: id of the Kubeflow run that trained it; empty where none did.
    """

    name: str
    temperature: float
    threshold: float
    recall_target: float
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    labels: tuple[str, ...] = contract.LABELS
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    kubeflow_run: str = ""
    offset: float = 0.0
    sure: float = 0.5
    schema_version: int = contract.BUNDLE_SCHEMA_VERSION

    @property
    def point(self) -> OperatingPoint:
        """How this model's logits become answers."""
        return OperatingPoint(self.temperature, self.threshold, self.offset, self.sure)

    @property
    def synthetic(self) -> bool:
        """True for a model trained on drawn images, which must never meet a patient."""
        return bool(self.data.get("synthetic", False))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form, keys in a fixed order."""
        value = {
            "schema_version": self.schema_version,
            "name": self.name,
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.to_json(),
            "temperature": self.temperature,
            "offset": self.offset,
            "threshold": self.threshold,
            "sure": self.sure,
            "recall_target": self.recall_target,
            "metrics": dict(self.metrics),
            "data": dict(self.data),
            "config": dict(self.config),
            "versions": dict(self.versions),
            "files": dict(sorted(self.files.items())),
            **({"kubeflow_run": self.kubeflow_run} if self.kubeflow_run else {}),
        }
        return {**value, _SEAL: _seal(value)}

    @classmethod
    def from_json(cls, value: Any, where: Path) -> Manifest:
        """Inverse of `to_json`.

        Raises BundleError, naming `where`, on another schema, a missing key, a value out of range, and where a value
        was changed after the manifest was written: one flipped digit of the threshold would change answers.
        """
        if not isinstance(value, dict) or "schema_version" not in value:
            raise BundleError(f"{where}: not a bundle manifest; give the folder that `pneumoctl train` wrote")
        if value["schema_version"] not in contract.BUNDLE_SCHEMAS_READ:
            raise BundleError(
                f"{where}: schema version {value['schema_version']}, this release reads "
                f"{' and '.join(map(str, contract.BUNDLE_SCHEMAS_READ))}; install the release that wrote the bundle"
            )
        try:
            manifest = cls(
                name=str(value["name"]),
                temperature=float(value["temperature"]),
                threshold=float(value["threshold"]),
                recall_target=float(value["recall_target"]),
                preprocessing=Preprocessing.from_json(value["preprocessing"]),
                labels=tuple(value["labels"]),
                metrics=dict(value["metrics"]),
                data=dict(value["data"]),
                config=dict(value["config"]),
                versions=dict(value["versions"]),
                files=dict(value["files"]),
                kubeflow_run=str(value.get("kubeflow_run", "")),
                offset=float(value.get("offset", 0.0)),
                sure=float(value.get("sure", 0.5)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{where}: damaged manifest ({error!r}); restore the bundle from its release") from error
        numbers = (manifest.temperature > 0, 0 <= manifest.threshold <= 1, 0.5 <= manifest.sure <= 1)
        if not (all(numbers) and math.isfinite(manifest.temperature) and math.isfinite(manifest.offset)):
            raise BundleError(
                f"{where}: {manifest.point}; expected a temperature above 0, a threshold of 0 to 1, an offset that is "
                "a number and sure of .5 to 1; restore the bundle from its release"
            )
        if value.get(_SEAL, _seal(value)) != _seal(value):
            raise BundleError(
                f"{where}: was changed after it was written, its digest is another; restore the bundle from its "
                "release, or change thresholds with `pneumoctl calibrate`"
            )
        return manifest

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a bundle.json alone. Raises BundleError where it is damaged or of another schema."""
        return _parse(path.read_bytes(), path)


def _seal(value: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a manifest's JSON value without the seal itself, whatever its layout."""
    rest = {key: item for key, item in value.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _parse(raw: bytes, where: Path) -> Manifest:
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{where}: not JSON ({error}); restore the bundle from its release") from error
    return Manifest.from_json(value, where)


def manifest_model_id(path: Path) -> str:
    """`Bundle.model_id` from a bundle.json alone."""
    raw = path.read_bytes()
    return _model_id(_parse(raw, path).name, hashlib.sha256(raw).hexdigest())


def _model_id(name: str, digest: str) -> str:
    return f"{name}@{digest[:12]}"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its digests verified."""

    path: Path
    manifest: Manifest
    digest: str
    """Hex SHA-256 of bundle.json, which names the digest of every other file."""

    @property
    def model_id(self) -> str:
        """Name and the first 12 digits of the digest, such as `pneumonia-local@1f2e3d4c5b6a`."""
        return _model_id(self.manifest.name, self.digest)

    def file(self, name: str) -> Path:
        """Path of a file of the bundle. Raises BundleError where the manifest does not list it."""
        if name not in self.manifest.files:
            have = ", ".join(sorted(self.manifest.files))
            raise BundleError(f"{self.path}: has no {name} (it has {have}); export it with `pneumoctl export`")
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether the manifest lists the file."""
        return name in self.manifest.files


def default_bundle() -> Path:
    """$PNEUMONIA_BUNDLE, or ./models."""
    return Path(os.environ.get(contract.BUNDLE_ENV) or contract.BUNDLE_DIR).expanduser()


def open_bundle(path: Path | None = None, *, verify: bool = True) -> Bundle:
    """Open the bundle at `path` (default: `default_bundle()`).

    verify: compare the SHA-256 of every file with the manifest; leave it on unless it was done a moment ago.
    Raises BundleNotFound where there is none, BundleError where it is damaged, incomplete or of another schema.
    """
    folder = path if path is not None else default_bundle()
    manifest_file = folder / contract.BUNDLE_MANIFEST
    try:
        raw = manifest_file.read_bytes()
    except FileNotFoundError as error:
        raise BundleNotFound(
            f"no bundle at {folder}: {contract.BUNDLE_MANIFEST} is missing; make one with `make demo` or "
            f"`pneumoctl pipeline run`, or name another with --bundle or {contract.BUNDLE_ENV}"
        ) from error
    except OSError as error:
        raise BundleError(f"{manifest_file}: cannot be read ({error.strerror}); give the bundle's folder") from error
    manifest = _parse(raw, manifest_file)
    _require_known(folder, manifest.files)
    if manifest.labels != contract.LABELS:
        raise BundleError(f"{manifest_file}: labels {list(manifest.labels)}, expected {list(contract.LABELS)}")
    bundle = Bundle(folder, manifest, hashlib.sha256(raw).hexdigest())
    if verify:
        _verify(bundle)
    return bundle


def _require_known(where: Path, names: Iterable[str]) -> None:
    if unknown := sorted(set(names) - _FILES):
        raise BundleError(
            f"{where}: {', '.join(map(printable, unknown))}: not a file of a bundle, which holds "
            f"{', '.join(sorted(_FILES))} and nothing that could run code; restore the bundle from its release"
        )


def _verify(bundle: Bundle) -> None:
    for name, expected in bundle.manifest.files.items():
        try:
            actual = sha256_file(bundle.path / name)
        except OSError as error:
            raise BundleError(
                f"{bundle.path / name}: cannot be read ({error.strerror}); restore the bundle from its release"
            ) from error
        if actual != expected:
            raise BundleError(
                f"{bundle.path / name}: SHA-256 {actual[:12]}..., the manifest says {expected[:12]}...; "
                "the file changed after the bundle was written, restore the bundle from its release"
            )


def write_bundle(target: Path, manifest: Manifest, files: Mapping[str, Path]) -> Bundle:
    """Write a bundle at `target` whole or not at all, replacing what was there.

    manifest: its `files` is ignored and computed. files: by name in the bundle, the file to copy; it may lie in an
    older bundle at `target` itself. Raises BundleError for a file that no bundle holds, UsageError where `target` holds
    something other than a bundle.
    """
    check_replaceable(target, contract.BUNDLE_MANIFEST)
    _require_known(target, files)
    with replace_directory(target) as building:
        digests = {}
        for name, source in files.items():
            shutil.copyfile(source, building / name)
            digests[name] = sha256_file(building / name)
        write_json(building / contract.BUNDLE_MANIFEST, replace(manifest, files=digests).to_json())
    return open_bundle(target, verify=False)


def extend_bundle(bundle: Bundle, target: Path, files: Mapping[str, Path], **changes: Any) -> Bundle:
    """A copy of `bundle` at `target` (which may be `bundle.path`) with more files and changed manifest fields."""
    kept = {name: bundle.path / name for name in bundle.manifest.files}
    return write_bundle(target, replace(bundle.manifest, **changes), {**kept, **files})
