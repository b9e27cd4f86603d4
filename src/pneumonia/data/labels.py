"""Tables of labels: our own labels.csv, and those of public sets as they are downloaded."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.config.schema import DataConfig
from pneumonia.core.listing import SUFFIXES, is_image, walk
from pneumonia.errors import DataError
from pneumonia.files import printable

LABELS_FILE = "labels.csv"
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
         "test": "test", "testing": "test"}  # fmt: skip
"""Names that folders and tables give the parts of a data set."""
_LABEL_INDEX = {**{name: index for index, name in enumerate(contract.LABELS)}, "0": 0, "1": 1}
_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what; see `DataConfig`. Frozen in a fetched folder's note."""

    labels: str
    path_column: str | None = None
    label_column: str | None = None
    positive: str | None = None
    negative: str | None = None
    patient_column: str | None = None
    only: str | None = None

    @classmethod
    def of(cls, config: DataConfig, root: Path) -> Columns | None:
        """The columns that the configuration names; None where it names no table."""
        if config.labels is None:
            return None
        given = Path(config.labels).expanduser()
        table = next((place for place in (root / given, given) if place.is_file()), None)
        if table is None:
            raise DataError(f"data.labels={config.labels}: no such file under {root}, nor here; give the table's path")
        return cls(str(table.resolve()), config.path_column, config.label_column, config.positive, config.negative,
                   config.patient_column, config.only)  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Labelled:
    """A row of a table. label: index, None where the row's value is neither class."""

    line: int
    path: str
    label: int | None
    patient: str | None
    part: str | None


def read_table(table: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str | None]]]]:
    """The header, in lower case, and each row that is not empty with its line.

    Commas, semicolons, tabs or bars, as the header has them; UTF-8 or UTF-16 with its mark. Raises DataError.
    """
    try:
        raw = table.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeError as error:
        raise DataError(
            f"{table}: cannot be read as a comma-separated UTF-8 table ({error}); save it as CSV UTF-8"
        ) from error
    skipped, delimiter = 0, None
    if text[:4].lower() == "sep=":  # Excel's way to say it.
        first, _, text = text.partition("\n")
        skipped, delimiter = 1, first.strip()[4:5] or None
    header = text.lstrip("\r\n").partition("\n")[0]
    delimiter = delimiter or max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names: list[str] = []
    for row in reader:
        if any(cell.strip() for cell in row):
            names = [cell.strip().lower() for cell in row]
            break
    return names, _rows(table, reader, names, skipped)


def _rows(table: Path, reader: Any, names: list[str], skipped: int) -> Iterator[tuple[int, dict[str, str | None]]]:
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                cells: list[str | None] = [cell.strip() for cell in row[: len(names)]]
                cells += [None] * (len(names) - len(cells))
                yield reader.line_num + skipped, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{table}: cannot be read as a comma-separated UTF-8 table ({error})") from error


def labelled(table: Path, columns: Columns | None) -> Iterator[Labelled]:
    """The rows of a table. columns: None for labels.csv. Raises DataError, naming the line, for what is no label."""
    names, rows = read_table(table)
    path_name, label_name, patient_name, only = _chosen(table, names, columns)
    positive = _values(columns.positive) if columns else None
    negative = _values(columns.negative) if columns else None
    for line, row in rows:
        if only is not None and (row[only[0]] or "").lower() != only[1]:
            continue
        path, value = (row[path_name] or "").replace("\\", "/"), row[label_name]
        where = f"{table} line {line}"
        if value is None:
            raise DataError(f"{where}: the row is shorter than the header; {label_name} is missing")
        label = _own_label(where, value) if positive is None else _label(value, positive, negative)
        part = (row.get("split") or "").lower() or None
        if columns is None and part is not None and part not in PARTS:
            raise DataError(f"{where}: split {part!r}, expected {', '.join(contract.SPLITS)} or nothing")
        patient = (row.get(patient_name) or None) if patient_name else None
        yield Labelled(line, path, label, patient, PARTS.get(part) if part else None)


def _chosen(
    table: Path, names: list[str], columns: Columns | None
) -> tuple[str, str, str | None, tuple[str, str] | None]:
    """The names of the columns of path, label and patient, and the column and value of the rows that count."""
    path = (columns and columns.path_column) or "path"
    label = (columns and columns.label_column) or "label"
    patient = columns.patient_column if columns else None
    only = None
    if columns and columns.only:
        column, _, value = columns.only.partition("=")
        only = column.strip().lower(), value.strip().lower()
    wanted = [path.strip().lower(), label.strip().lower()]
    missing = sorted(
        {*wanted, *([patient.strip().lower()] if patient else []), *([only[0]] if only else [])} - set(names)
    )
    if missing:
        hint = (
            "the header is path,label and optionally patient_id,split; other columns are named with data.labels=, "
            "data.path_column=, data.label_column= and data.positive="
        )
        if columns:
            hint = (
                "data.path_column=, data.label_column=, data.patient_column= and data.only= name columns of the header"
            )
        shown = ",".join(names) or "empty"
        raise DataError(f"{table}: no column {' and '.join(missing)}; {hint}, and this one is {printable(shown)[:400]}")
    if patient is None:
        patient = "patient_id" if "patient_id" in names else None
    return wanted[0], wanted[1], patient.strip().lower() if patient else None, only


def _values(text: str | None) -> set[str] | None:
    return None if text is None else {_same(value) for value in text.split(",")}


def _same(value: str) -> str:
    """1, 1.0 and "1" are one value, and capitals mean nothing."""
    value = value.strip().lower()
    try:
        return f"{float(value):g}"
    except ValueError:
        return value


def _own_label(where: str, value: str) -> int:
    label = _LABEL_INDEX.get(_same(value).upper())
    if label is None:
        raise DataError(
            f"{where}: label {value!r}, expected {' or '.join(contract.LABELS)}, or 0 or 1; for other words give "
            "data.labels= and data.positive="
        )
    return label


def _label(value: str, positive: set[str], negative: set[str] | None) -> int | None:
    """1 where any of the row's values is positive. Without `negative`, numbers but 0 and empty cells are neither."""
    found = {_same(part) for part in value.split("|")}
    if found & positive:
        return 1
    if negative is not None:
        return 0 if found & negative else None
    if found == {""}:
        return None
    numeric = all(one.lstrip("-").replace(".", "").isdigit() for one in positive)
    return 0 if not numeric or found == {"0"} else None


class Files:
    """Finds the files that a table's paths mean, below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[str]] | None = None

    def find(self, path: str) -> str | None:
        """The path below the root: as it stands, without folders in front, with a suffix, or by its name alone."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/"):
            return path if os.path.isfile(path) else None
        for start in range(len(parts)):
            shorter = "/".join(parts[start:])
            for candidate in (shorter, *(shorter + suffix for suffix in SUFFIXES)):
                if os.path.isfile(self.root / candidate):
                    return candidate
        named = self._names().get(parts[-1], []) if parts else []
        return named[0] if len(named) == 1 else None

    def _names(self) -> dict[str, list[str]]:
        if self._by_name is None:
            self._by_name = {}
            for folder, names in walk(str(self.root), lambda error: None):
                for name in names:
                    if is_image(name, lambda: b""):
                        path = os.path.relpath(os.path.join(folder, name), self.root)
                        for key in {name, os.path.splitext(name)[0]}:
                            self._by_name.setdefault(key, []).append(path)
        return self._by_name
