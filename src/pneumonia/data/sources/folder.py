"""Images that are already here: class folders, flat or under train/val/test, or a labels.csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pneumonia import contract
from pneumonia.config.schema import DataConfig
from pneumonia.errors import ConfigError, DataError
from pneumonia.files import write_json

SUFFIXES = (".jpeg", ".jpg", ".png")
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
    list_images(root)
    write_json(out / "source.json", {"source": "folder", "synthetic": False, "root": str(root)})


def list_images(root: Path) -> list[Listed]:
    """Every labelled image under `root`, sorted by path.

    labels.csv wins where there is one (columns path, label, and optional patient_id and split). Otherwise the folders
    NORMAL and PNEUMONIA are read, in any case of letters, directly under `root` or under train, val and test.
    Raises DataError, saying what was found instead.
    """
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give data.root=<folder of the images>")
    listed = sorted(_from_csv(root) if (root / LABELS_FILE).is_file() else _from_folders(root), key=lambda e: e.path)
    if not listed:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{root}: no images in folders NORMAL and PNEUMONIA, directly or under train, val, test, and no "
            f"{LABELS_FILE}; found {found}"
        )
    for index, name in enumerate(contract.LABELS):
        if not any(entry.label == index for entry in listed):
            raise DataError(f"{root}: {len(listed)} images, none of them {name}; both classes are needed")
    return listed


def _from_folders(root: Path) -> Iterator[Listed]:
    for part in (None, *contract.SPLITS):
        base = root if part is None else root / part
        if not base.is_dir():
            continue
        for folder in sorted(base.iterdir()):
            label = _LABEL_INDEX.get(folder.name.upper())
            if label is None or not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    # Files whose names start with a dot are other programs' notes, such as those of macOS archives.
                    if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                        yield Listed(str(Path(entry.path).relative_to(root)), label, None, part)


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
                        f"{table} line {reader.line_num}: {entry.path} stands on line {seen[entry.path]} already"
                    )
                seen[entry.path] = reader.line_num
                yield entry
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as UTF-8 text ({error})") from error


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
