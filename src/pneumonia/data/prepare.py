"""From a fetched folder to a prepared data set: pixel cache, index, split and digest.

A prepared folder holds pixels.npy (uint8, N x 224 x 224), index.csv (COLUMNS; a PatientID, and the patient_id of
labels.csv, are hashed) and, written last, prepared.json: digest, fingerprint, source, synthetic, patients ("named" or
"unknown"), patients_from, split (strategy, shares, seed, note, straddling_patients), counts (by_split, by_class,
patients), preprocessing, fraction, unreadable, duplicates, left_out
(count, reasons, and the first files with theirs).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import __version__, contract
from pneumonia.config.schema import Config, SplitConfig
from pneumonia.core.dicom import SALT_ENV, hashed_identity, patient_key
from pneumonia.core.preprocess import Preprocessing
from pneumonia.data import patients as keys_of
from pneumonia.data.decode import decode
from pneumonia.data.labels import Columns
from pneumonia.data.prepared import COLUMNS, PreparedData, load_prepared
from pneumonia.data.sources import read_source
from pneumonia.data.sources.folder import Found, Listed, fingerprint, survey
from pneumonia.data.split import assign, check_official, hold_out, straddlers
from pneumonia.errors import DataError
from pneumonia.files import cannot_write, locked, printable, remove_remains, replace_directory, write_json

__all__ = ["COLUMNS", "PreparedData", "load_prepared", "prepare"]

MIN_PATIENTS, FEW_PATIENTS = 10, 50
_LEFT_OUT_NAMED = 1000


def prepare(config: Config, fetched: Path, out: Path) -> PreparedData:
    """Decode, drop exact duplicates, find patients, split, and write `out` whole; instant when nothing changed.

    fetched: what `pneumonia.data.sources.fetch` returned. Progress and what could not be read go to stderr. Of files
    with the same bytes the first by path is kept, and their patients become one. Raises DataError for a folder, a
    label, a patient or a split that does not fit, for one image under two labels, and where a class has fewer than
    MIN_PATIENTS patients; StorageError where `out` cannot be written.
    """
    source = read_source(fetched)
    root = fetched if source["root"] == "." else Path(source["root"])
    found = survey(root, Columns(**source["columns"]) if source.get("columns") else None)
    _say_left_out(found)
    mark = _fingerprint(config, source, root, found)
    _check_replaceable(out)
    try:
        waiting = f"prepare: waiting for another process that prepares {out}"
        with locked(out.parent / f".{out.name}.lock", waiting):
            remove_remains(out)
            with contextlib.suppress(DataError):
                known = load_prepared(out)
                if known.manifest["fingerprint"] == mark:
                    print(f"prepare: {out} is up to date, {len(known.labels)} images", file=sys.stderr)
                    return known
            with replace_directory(out) as building:
                _build(config, source, root, found, mark, building)
            return load_prepared(out)
    except OSError as error:
        raise cannot_write(out, error) from error


def _say_left_out(found: Found, examples: int = 3) -> None:
    """On stderr, a line a reason."""
    for why, count in found.reasons().items():
        names = [printable(path) for path, reason in found.left_out if reason == why][:examples]
        print(f"warning: left out, {count} files: {why}, such as {', '.join(names)}", file=sys.stderr)


def _fingerprint(config: Config, source: dict[str, Any], root: Path, found: Found) -> str:
    """Changes when a file, a label, a setting or the code that prepare depends on changes; reads no image."""
    settings = dataclasses.asdict(config.data)
    relevant = {key: settings[key] for key in ("patients", "patient_regex", "fraction", "seed")}
    if any(entry.patient for entry in found.listed):
        relevant["patient_id"] = "hashed"  # so that an index of older versions, with what labels.csv says, is replaced
    parts = [__version__, Preprocessing().to_json(), relevant, dataclasses.asdict(config.split), source["source"],
             source["synthetic"], str(root), fingerprint(root, found.listed), [list(entry) for entry in found.left_out],
             os.environ.get(SALT_ENV)]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_replaceable(out: Path) -> None:
    """A mistyped data.prepared_dir must not cost the user a folder."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose another folder with data.prepared_dir=")
    if out.is_dir() and any(out.iterdir()) and not (out / contract.DATA_MANIFEST).is_file():
        raise DataError(
            f"{out}: holds files but no {contract.DATA_MANIFEST}, so it is not a prepared data set, and would be "
            "replaced; choose an empty folder with data.prepared_dir="
        )


def _build(config: Config, source: dict[str, Any], root: Path, found: Found, mark: str, building: Path) -> None:
    """Write pixel cache, index and manifest into the empty folder `building`."""
    _check_published_split(config, source)
    listed, keys, origin = _choose(config, root, found.listed)
    decoded = decode(root, listed, building / contract.PIXELS_FILE, config.data.workers)
    joined = keys_of.join_patients(keys, [(keys[one], keys[other]) for one, other in decoded.duplicates])
    kept, patients = [listed[row] for row in decoded.kept], np.array([joined[row] for row in decoded.kept])
    for warning in _check_enough(kept, patients.tolist(), origin):
        print(f"warning: {warning}", file=sys.stderr)
    labels = np.array([entry.label for entry in kept], np.int64)
    parts, note = assign(config.split, labels, patients, [entry.part for entry in kept])
    groups = np.array([keys_of.group_of(Path(entry.path).name) for entry in kept])
    if config.split.hold_out:
        parts, note = hold_out(parts, groups, labels, patients, config.split.hold_out)
    used = parts != contract.UNUSED
    paths = np.array([entry.path for entry in kept])
    straddling = _straddling(config.split, origin, parts[used], patients[used], paths[used])
    if origin == keys_of.FROM_TABLE:  # After the split, which then does not hang on the salt.
        patients = np.array([hashed_identity(patient) for patient in patients])
    rows = [
        (entry.path, contract.LABELS[entry.label], patient, part, group, digest)
        for entry, patient, part, group, digest in zip(kept, patients, parts, groups, decoded.digests, strict=True)
    ]
    with (building / contract.INDEX_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])
    manifest = {
        "digest": _digest(rows, Preprocessing()),
        "fingerprint": mark,
        "source": source["source"],
        "synthetic": source["synthetic"],
        "patients": keys_of.UNKNOWN if origin == keys_of.UNKNOWN else keys_of.NAMED,
        "patients_from": origin,
        "split": {**dataclasses.asdict(config.split), "note": note, "straddling_patients": straddling},
        "counts": _counts(labels[used], patients[used], parts[used]),
        "preprocessing": Preprocessing().to_json(),
        "fraction": config.data.fraction,
        "unreadable": [{"path": printable(listed[row].path), "why": why} for row, why in decoded.unreadable],
        "duplicates": [
            {"path": printable(listed[row].path), "same_as": printable(listed[first].path)}
            for row, first in decoded.duplicates
        ],
        "left_out": {
            "count": len(found.left_out),
            "reasons": found.reasons(),
            "files": [{"path": printable(path), "why": why} for path, why in found.left_out[:_LEFT_OUT_NAMED]],
        },
    }
    write_json(building / contract.DATA_MANIFEST, manifest)


def _check_published_split(config: Config, source: dict[str, Any]) -> None:
    """Where nobody can tell the patients, dividing anew would mix them; the publisher's split knew them."""
    if source.get("published_split") and (config.split.strategy, config.data.patients) != ("official", keys_of.UNKNOWN):
        raise DataError(
            f"{source['source']} names no patients and has a split of its own, but split.strategy="
            f"{config.split.strategy} data.patients={config.data.patients}; give data={source['source']}, which sets "
            "split.strategy=official data.patients=unknown"
        )


def _choose(config: Config, root: Path, listed: list[Listed]) -> tuple[list[Listed], list[str], str]:
    """The images to decode, their patient keys and where those come from.

    Everything that needs no pixels refuses here, so that nobody waits for a refusal that is certain.
    """
    keys, origin = keys_of.patient_keys(
        [entry.path for entry in listed],
        [entry.patient for entry in listed],
        config.data.patients,
        config.data.patient_regex,
        lambda: [patient_key(root / entry.path) for entry in listed],
    )
    rows = _sample(config, listed, np.array(keys))
    listed, keys = [listed[row] for row in rows], [keys[row] for row in rows]
    _check_enough(listed, keys, origin)
    if config.split.strategy == "official":
        check_official([entry.part for entry in listed])
    return listed, keys, origin


def _counts(labels: npt.NDArray[np.int64], patients: npt.NDArray[np.str_], parts: npt.NDArray[np.str_]) -> Any:
    """Images by part, images by part and class, and patients in all."""
    by_class = {
        part: {name: int(((labels == index) & (parts == part)).sum()) for index, name in enumerate(contract.LABELS)}
        for part in contract.SPLITS
    }
    by_split = {part: sum(by_class[part].values()) for part in contract.SPLITS}
    return {"by_split": by_split, "by_class": by_class, "patients": len(np.unique(patients))}


def _straddling(
    config: SplitConfig,
    origin: str,
    parts: npt.NDArray[np.str_],
    patients: npt.NDArray[np.str_],
    paths: npt.NDArray[np.str_],
) -> int | None:
    """How many patients have images in more than one part, None where patients are unknown.

    Raises DataError where an official split contradicts patients that the user named: one of the two is wrong. Numbers
    read from the names of the Kaggle set are coarser than its patients and do overlap between its train and test
    folders, so there, as in an image-level split that the user asked for, the count is a warning.
    """
    if origin == keys_of.UNKNOWN:
        return None
    both = straddlers(parts, patients)
    if not both:
        return 0
    # By their files: a hospital's patient numbers are nothing to print.
    own = [
        (str(path), str(part))
        for path, part in zip(paths[patients == both[0]], parts[patients == both[0]], strict=True)
    ]
    first = {part: path for path, part in reversed(own)}
    files = " and ".join(f"{printable(path)} ({part})" for part, path in sorted(first.items(), reverse=True))
    what = f"{len(both)} patients are in more than one part of the split, such as the one of {files}"
    if config.strategy == "patient" or (config.strategy == "official" and origin != keys_of.FROM_NAMES):
        raise DataError(f"{what}; use split.strategy=patient, which keeps every patient on one side")
    print(f"warning: {what}; figures of split.strategy={config.strategy} are too good", file=sys.stderr)
    return len(both)


def _digest(table: Sequence[tuple[Any, ...]], spec: Preprocessing) -> str:
    """SHA-256 over what training depends on: image bytes, label, patient and part, in any order, and preprocessing."""
    rows = sorted((str(row[5]), str(row[1]), str(row[2]), str(row[3])) for row in table)
    return hashlib.sha256(json.dumps([spec.to_json(), rows]).encode()).hexdigest()


def _sample(config: Config, listed: list[Listed], keys: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """Rows of a random share of the patients of each class, ascending; all rows for data.fraction=1."""
    if config.data.fraction == 1.0:
        return np.arange(len(listed))
    labels = np.array([entry.label for entry in listed])
    rng = np.random.default_rng(config.data.seed)
    keep: set[str] = set()
    for label in range(len(contract.LABELS)):
        known = np.unique(keys[labels == label])
        keep.update(rng.permutation(known)[: max(1, round(config.data.fraction * len(known)))].tolist())
    return np.flatnonzero([key in keep for key in keys])


def _check_enough(listed: Sequence[Listed], keys: Sequence[str], origin: str) -> list[str]:
    """Raises DataError below MIN_PATIENTS a class; returns a warning for each class below FEW_PATIENTS."""
    unit = "images" if origin == keys_of.UNKNOWN else "patients"
    few = []
    for index, name in enumerate(contract.LABELS):
        count = len({key for entry, key in zip(listed, keys, strict=True) if entry.label == index})
        if count < MIN_PATIENTS:
            raise DataError(
                f"{count} {unit} of class {name}, at least {MIN_PATIENTS} are needed to train and test at all; bring "
                f"more images or raise data.fraction{_other_patients(listed, index, origin)}"
            )
        if count < FEW_PATIENTS:
            few.append(f"only {count} {unit} of class {name}; intervals will be wide and the gate may refuse")
    return few


def _other_patients(listed: Sequence[Listed], label: int, origin: str) -> str:
    """For a message: that there are more images than patients, where the patients come from, and the ways out."""
    images = sum(entry.label == label for entry in listed)
    if origin == keys_of.UNKNOWN or images < MIN_PATIENTS:
        return ""
    return f". Its {images} images name their patients by {origin}; {keys_of.WAYS_OUT}"
