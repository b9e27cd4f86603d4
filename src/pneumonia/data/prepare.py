"""From a fetched folder to a prepared data set: pixel cache, index, split and digest."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.config.schema import Config
from pneumonia.core.image import read_image
from pneumonia.core.preprocess import Preprocessing, pixels
from pneumonia.data.patients import group_of, patient_keys
from pneumonia.data.sources import SOURCE_FILE
from pneumonia.data.sources.folder import Listed, list_images
from pneumonia.data.split import assign, check_patients
from pneumonia.errors import DataError, ImageError
from pneumonia.files import replace_directory, write_json

COLUMNS = ("path", "label", "patient", "split", "group", "sha256")
MIN_PATIENTS, FEW_PATIENTS = 10, 50
PROGRESS_SECONDS = 2.0


@dataclass(frozen=True)
class PreparedData:
    """An opened prepared data set of N images."""

    path: Path
    manifest: dict[str, Any]
    index: dict[str, list[str]]
    """Columns path, label, patient, split, group, sha256, each of N strings."""

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class index by image, (N,)."""
        return np.array([contract.LABELS.index(label) for label in self.index["label"]], np.int64)

    @cached_property
    def patients(self) -> npt.NDArray[np.str_]:
        """Patient key by image, (N,)."""
        return np.array(self.index["patient"])

    @cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Grey pixels (N, 224, 224), memory-mapped read-only."""
        return np.asarray(np.load(self.path / contract.PIXELS_FILE, mmap_mode="r")).view()

    def indices(self, part: str) -> npt.NDArray[np.int64]:
        """Rows of `train`, `val` or `test`, ascending."""
        return np.flatnonzero(np.array(self.index["split"]) == part)


def load_prepared(path: Path) -> PreparedData:
    """Open what `prepare` wrote. Raises DataError where it is missing or damaged."""
    try:
        manifest = json.loads((path / contract.DATA_MANIFEST).read_text("utf-8"))
        with (path / contract.INDEX_FILE).open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no prepared data set ({error.filename} is missing); run `pneumoctl data prepare`"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged prepared data set ({error}); run `pneumoctl data prepare` again") from error
    data = PreparedData(path, manifest, {name: [row[name] for row in rows] for name in COLUMNS})
    if len(data.pixels) != len(rows) or len(rows) != sum(manifest["counts"]["by_split"].values()):
        raise DataError(
            f"{path}: {len(data.pixels)} cached images, {len(rows)} in the index; run `pneumoctl data prepare` again"
        )
    return data


def prepare(config: Config, fetched: Path, out: Path) -> PreparedData:
    """Decode, drop exact duplicates, find patients, split, and write `out` whole; instant when nothing changed.

    Progress and what could not be read go to stderr. Raises DataError for a folder, a label, a patient or a split that
    does not fit, and where a class has fewer than MIN_PATIENTS patients.
    """
    source = _read_source(fetched)
    root = fetched if source["root"] == "." else Path(source["root"])
    listed = list_images(root)
    fingerprint = _fingerprint(config, root, listed)
    with _lock(out):
        with contextlib.suppress(DataError):
            known = load_prepared(out)
            if known.manifest["fingerprint"] == fingerprint:
                print(f"prepare: {out} is up to date, {len(known.labels)} images", file=sys.stderr)
                return known
        with replace_directory(out) as building:
            _build(config, source, root, listed, fingerprint, building)
        return load_prepared(out)


def _read_source(fetched: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((fetched / SOURCE_FILE).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{fetched}: nothing fetched here ({error}); run `pneumoctl data fetch` first") from error


def _fingerprint(config: Config, root: Path, listed: list[Listed]) -> str:
    """Changes when a file, a label or a setting that prepare depends on changes; reads no file's content."""
    settings = dataclasses.asdict(config.data)
    relevant = {key: settings[key] for key in ("patients", "patient_regex", "fraction", "seed")}
    digest = hashlib.sha256(json.dumps([relevant, dataclasses.asdict(config.split), str(root)]).encode())
    for entry in listed:
        with contextlib.suppress(OSError):
            stat = (root / entry.path).stat()
            digest.update(f"{entry}|{stat.st_size}|{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """One preparer at a time; the second waits and then finds the work done."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(
    config: Config, source: dict[str, Any], root: Path, listed: list[Listed], fingerprint: str, building: Path
) -> None:
    names = [Path(entry.path).name for entry in listed]
    keys, patients_known = patient_keys(
        names, [entry.patient for entry in listed], config.data.patients, config.data.patient_regex
    )
    rows = _sample(config, listed, np.array(keys))
    cache = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        building / contract.PIXELS_FILE, mode="w+", dtype=np.uint8,
        shape=(len(rows), contract.IMAGE_SIZE, contract.IMAGE_SIZE),
    )  # fmt: skip
    kept, digests, unreadable, duplicates = _decode(config, root, [listed[row] for row in rows], cache)
    cache.flush()
    del cache
    if len(kept) < len(rows):
        _truncate(building / contract.PIXELS_FILE, len(kept))
    rows = rows[kept]
    labels = np.array([listed[row].label for row in rows], np.int64)
    patients = np.array([keys[row] for row in rows])
    _check_enough(labels, patients, patients_known)
    parts, note = assign(config.split, labels, patients, [listed[row].part for row in rows])
    if config.split.strategy != "stratified":
        check_patients(parts, patients)
    table = [
        (listed[row].path, contract.LABELS[label], patient, part, group_of(names[row]), digest)
        for row, label, patient, part, digest in zip(rows, labels, patients, parts, digests, strict=True)
    ]
    with (building / contract.INDEX_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *table])
    spec = Preprocessing()
    by_class = {part: {n: int(((labels == i) & (parts == part)).sum()) for i, n in enumerate(contract.LABELS)}
                for part in contract.SPLITS}  # fmt: skip
    write_json(
        building / contract.DATA_MANIFEST,
        {
            "digest": _digest(table, spec),
            "fingerprint": fingerprint,
            "source": source["source"],
            "synthetic": source["synthetic"],
            "patients": patients_known,
            "split": {**dataclasses.asdict(config.split), "note": note},
            "counts": {
                "by_split": {part: sum(by_class[part].values()) for part in contract.SPLITS},
                "by_class": by_class,
                "patients": len(np.unique(patients)),
            },
            "preprocessing": spec.to_json(),
            "fraction": config.data.fraction,
            "unreadable": unreadable,
            "duplicates": duplicates,
        },
    )  # fmt: skip


def _digest(table: Sequence[tuple[Any, ...]], spec: Preprocessing) -> str:
    """SHA-256 over what training depends on: pixels' source, label, patient and part, in any order of files."""
    rows = sorted((row[5], row[1], row[2], row[3]) for row in table)
    return hashlib.sha256(json.dumps([spec.to_json(), rows]).encode()).hexdigest()


def _sample(config: Config, listed: list[Listed], keys: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """Rows of a random share of the patients of each class, ascending; all rows for data.fraction=1."""
    labels = np.array([entry.label for entry in listed])
    if config.data.fraction == 1.0:
        return np.arange(len(listed))
    rng = np.random.default_rng(config.data.seed)
    keep = set()
    for label in range(len(contract.LABELS)):
        patients = np.unique(keys[labels == label])
        keep.update(rng.permutation(patients)[: max(1, round(config.data.fraction * len(patients)))].tolist())
    return np.flatnonzero([key in keep for key in keys])


def _work(task: tuple[str, Preprocessing]) -> tuple[npt.NDArray[np.uint8] | None, str]:
    """Decode one file: its pixels and SHA-256, or None and why not."""
    path, spec = task
    try:
        data = read_image(Path(path))
        return pixels(data, spec, Path(path).name), hashlib.sha256(data).hexdigest()
    except ImageError as error:
        return None, str(error)


def _decode(
    config: Config, root: Path, listed: list[Listed], cache: npt.NDArray[np.uint8]
) -> tuple[list[int], list[str], list[dict[str, str]], list[dict[str, str]]]:
    """Fill `cache` from its start with every distinct readable image; positions kept, digests, what was left out."""
    kept: list[int] = []
    digests: list[str] = []
    unreadable: list[dict[str, str]] = []
    duplicates: list[dict[str, str]] = []
    first: dict[str, int] = {}
    tasks = ((str(root / entry.path), Preprocessing()) for entry in listed)
    workers = config.data.workers or os.cpu_count() or 1
    started = said = time.monotonic()
    # spawn: a forked child of a process that runs threads (torch, gRPC) can hang.
    with multiprocessing.get_context("spawn").Pool(min(workers, max(1, len(listed) // 64))) as pool:
        for position, (image, result) in enumerate(pool.imap(_work, tasks, chunksize=16)):
            entry = listed[position]
            if image is None:
                unreadable.append({"path": entry.path, "why": result})
            elif result in first:
                other = listed[first[result]]
                if other.label != entry.label:
                    raise DataError(
                        f"{entry.path} and {other.path} are the same image with two labels, "
                        f"{contract.LABELS[entry.label]} and {contract.LABELS[other.label]}; remove the wrong one"
                    )
                duplicates.append({"path": entry.path, "same_as": other.path})
            else:
                first[result] = position
                cache[len(kept)] = image
                kept.append(position)
                digests.append(result)
            now = time.monotonic()
            if now - said >= PROGRESS_SECONDS:
                said, pace = now, (position + 1) / (now - started)
                print(f"prepare: {position + 1} of {len(listed)} images, {pace:.0f} a second, "
                      f"{(len(listed) - position) / pace:.0f} s left", file=sys.stderr, flush=True)  # fmt: skip
    for item in unreadable:
        print(f"prepare: left out, {item['why']}", file=sys.stderr)
    if not kept:
        raise DataError(f"{root}: none of {len(listed)} images can be read; the first: {unreadable[0]['why']}")
    print(f"prepare: {len(kept)} images in {time.monotonic() - started:.1f} s, {len(duplicates)} exact duplicates and "
          f"{len(unreadable)} unreadable files left out", file=sys.stderr)  # fmt: skip
    return kept, digests, unreadable, duplicates


def _truncate(path: Path, count: int) -> None:
    """Shorten the cache to its first `count` images without holding them in memory."""
    old = np.load(path, mmap_mode="r")
    shorter = path.with_suffix(".short.npy")
    shape = (count, *old.shape[1:])
    new = np.lib.format.open_memmap(shorter, mode="w+", dtype=np.uint8, shape=shape)  # type: ignore[no-untyped-call]
    for start in range(0, count, 512):
        new[start : min(start + 512, count)] = old[start : min(start + 512, count)]
    new.flush()
    del new, old
    shorter.replace(path)


def _check_enough(labels: npt.NDArray[np.int64], patients: npt.NDArray[np.str_], known: str) -> None:
    unit = "patients" if known == "named" else "images"
    for index, name in enumerate(contract.LABELS):
        count = len(np.unique(patients[labels == index]))
        if count < MIN_PATIENTS:
            raise DataError(
                f"{count} {unit} of class {name}, at least {MIN_PATIENTS} are needed to train and test at all"
            )
        if count < FEW_PATIENTS:
            print(f"warning: only {count} {unit} of class {name}; intervals will be wide and the gate may refuse",
                  file=sys.stderr)  # fmt: skip
