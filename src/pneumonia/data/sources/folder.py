"""Images that are already here: class folders, flat or under train/val/test, or a labels.csv."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pneumonia import contract
from pneumonia.config.schema import DataConfig
from pneumonia.data.sources import SOURCE_FILE, read_source
from pneumonia.errors import ConfigError, DataError
from pneumonia.files import replace_directory, write_json

SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".dicom")
LABELS_FILE = "labels.csv"
_LABEL_INDEX = {name: index for index, name in enumerate(contract.LABELS)}


@dataclass(frozen=True)
class Listed:
    """One image of a folder. path: relative to the root. label: index. patient, part: where the folder tells."""

    path: str
    label: int
    patient: str | None = None
    part: str | None = None


def fetch(config: DataConfig, out: Path) -> None:
    """Note where the images are; nothing is copied. Raises DataError where the folder has no usable image."""
    if config.root is None:
        raise ConfigError("data.source=folder needs data.root=<folder of NORMAL and PNEUMONIA folders, or labels.csv>")
    root = Path(config.root).expanduser().resolve()
    listed = list_images(root)
    # Images drawn by a program stay synthetic by whatever way they come.
    synthetic = (root / SOURCE_FILE).is_file() and read_source(root)["synthetic"]
    note = {"source": "folder", "synthetic": synthetic, "root": str(root), "images": len(listed),
            "listing": fingerprint(root, listed)}  # fmt: skip
    before = read_source(out)["source"] if (out / SOURCE_FILE).is_file() else None
    if before not in (None, "folder", "phantom") and not root.is_relative_to(out.resolve()):
        raise DataError(f"{out}: holds what data={before} downloaded; choose another folder with data.raw_dir=")
    if before == "phantom" and not root.is_relative_to(out.resolve()):
        with replace_directory(out) as building:
            write_json(building / SOURCE_FILE, note)
    else:
        write_json(out / SOURCE_FILE, note)


def fingerprint(root: Path, listed: list[Listed]) -> str:
    """Changes when a file, a label, a patient or a part changes; looks at sizes and times, reads no image."""
    digest = hashlib.sha256()
    for entry in listed:
        try:
            stat = (root / entry.path).stat()
            digest.update(f"{entry}|{stat.st_size}|{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError as error:
            digest.update(f"{entry}|{error.errno}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def list_images(root: Path) -> list[Listed]:
    """Every labelled image under `root`, sorted by path.

    labels.csv wins where there is one (columns path, label, and optional patient_id and split). Otherwise the folders
    NORMAL and PNEUMONIA are read, directly under `root` or under train, val and test, names in any case of letters.
    Raises DataError, saying what was found instead.
    """
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give data.root=<folder of the images>")
    try:
        found = list(_from_csv(root) if (root / LABELS_FILE).is_file() else _from_folders(root))
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    listed = sorted(found, key=lambda entry: entry.path)
    if not listed:
        raise DataError(
            f"{root}: no {', '.join(SUFFIXES)} files in folders NORMAL and PNEUMONIA, directly or under train, val, "
            f"test, and no {LABELS_FILE}; found {_some(root)}"
        )
    for index, name in enumerate(contract.LABELS):
        if not any(entry.label == index for entry in listed):
            raise DataError(f"{root}: {len(listed)} images, none of them {name}; both classes are needed")
    return listed


def _some(root: Path, most: int = 8) -> str:
    """The first few names in a folder, for a message."""
    names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"


def _folders(base: Path) -> list[Path]:
    return sorted(entry for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _from_folders(root: Path) -> Iterator[Listed]:
    parts = [(folder, folder.name.lower()) for folder in _folders(root) if folder.name.lower() in contract.SPLITS]
    for base, part in ((root, None), *parts):
        for folder in _folders(base):
            label = _LABEL_INDEX.get(folder.name.upper())
            if label is not None:
                names = _images(root, folder)
                yield from (Listed(str((folder / name).relative_to(root)), label, None, part) for name in names)


def _images(root: Path, folder: Path) -> list[str]:
    """Names of the image files of a class folder. Images in folders below would be lost silently, so they refuse."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # Names that start with a dot are other programs' notes, such as those of macOS archives.
            if entry.name.startswith("."):
                continue
            # os.path, because DirEntry raises for a link to itself; that one is told and left out when it is read.
            if os.path.isdir(entry.path):
                if any(name.lower().endswith(SUFFIXES) for name in os.listdir(entry.path)):
                    raise DataError(
                        f"{folder.relative_to(root)}: has images in a folder of its own, {entry.name}; put them "
                        f"directly under {folder.name}, or list them in a {LABELS_FILE} with path,label,patient_id"
                    )
            elif entry.name.lower().endswith(SUFFIXES):
                names.append(entry.name)
    return names


def _from_csv(root: Path) -> Iterator[Listed]:
    table = root / LABELS_FILE
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = {"path", "label"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"{table}: no column {' and '.join(sorted(missing))}; the header is path,label and optionally "
                    f"patient_id,split, this one is {','.join(reader.fieldnames or ['empty'])}"
                )
            seen: dict[str, int] = {}
            for row in reader:
                entry = _row(root, table, reader.line_num, row)
                if entry.path in seen:
                    raise DataError(
                        f"{table} line {reader.line_num}: {entry.path} stands on line {seen[entry.path]} already; "
                        "remove one of them"
                    )
                seen[entry.path] = reader.line_num
                yield entry
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a comma-separated UTF-8 table ({error})") from error


def _row(root: Path, table: Path, line: int, row: dict[str, str | None]) -> Listed:
    where = f"{table} line {line}"
    path, label = (row["path"] or "").strip(), (row["label"] or "").strip().upper()
    if label not in _LABEL_INDEX:
        raise DataError(f"{where}: label {row['label']!r}, expected {' or '.join(contract.LABELS)}")
    if not path or not (root / path).is_file():
        raise DataError(f"{where}: {path or 'an empty path'} is not a file under {root}")
    part = (row.get("split") or "").strip().lower() or None
    if part is not None and part not in contract.SPLITS:
        raise DataError(f"{where}: split {part!r}, expected {', '.join(contract.SPLITS)} or nothing")
    return Listed(path, _LABEL_INDEX[label], (row.get("patient_id") or "").strip() or None, part)
