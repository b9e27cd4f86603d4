"""Images that are already here: class folders, flat or under train/val/test, a labels.csv, or another table."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pneumonia import contract
from pneumonia.config.schema import DataConfig
from pneumonia.core.listing import SUFFIXES, head_of, is_image, walk
from pneumonia.data.labels import LABELS_FILE, PARTS, Columns, Files, labelled
from pneumonia.data.sources import SOURCE_FILE, read_source
from pneumonia.errors import ConfigError, DataError
from pneumonia.files import printable, replace_directory, write_json

_LABEL_INDEX = {name: index for index, name in enumerate(contract.LABELS)}


@dataclass(frozen=True)
class Listed:
    """One image of a folder. path: relative to the root. label: index. patient, part: where the folder tells."""

    path: str
    label: int
    patient: str | None = None
    part: str | None = None


@dataclass
class Found:
    """What lies below a folder. left_out: path and reason of each file that is not used."""

    listed: list[Listed] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """How many files were left out, by reason."""
        return dict(Counter(why for _, why in self.left_out).most_common())


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise ConfigError("data.source=folder needs data.root=<folder of NORMAL and PNEUMONIA folders, or labels.csv>")
    return Path(config.root).expanduser().resolve()


def version(config: DataConfig) -> str:
    """`fingerprint` of the folder's images. Raises as `fetch`."""
    root = _root(config)
    columns = Columns.of(config, root)
    return f"{fingerprint(root, survey(root, columns).listed)} {columns and columns.to_json()}"


def fetch(config: DataConfig, out: Path) -> None:
    """Note where the images are; nothing is copied. Raises DataError where the folder has no usable image."""
    root = _root(config)
    columns = Columns.of(config, root)
    listed = survey(root, columns).listed
    # Images drawn by a program stay synthetic by whatever way they come.
    synthetic = (root / SOURCE_FILE).is_file() and read_source(root)["synthetic"]
    note = {"source": "folder", "synthetic": synthetic, "root": str(root), "images": len(listed),
            "listing": fingerprint(root, listed)}  # fmt: skip
    if columns is not None:
        note["columns"] = columns.to_json()
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


def list_images(root: Path, columns: Columns | None = None) -> list[Listed]:
    """The images of `survey`."""
    return survey(root, columns).listed


def survey(root: Path, columns: Columns | None = None) -> Found:
    """Every labelled image under `root`, sorted by path, and every other file with the reason why it is left out.

    columns: a table and what its columns mean. Else labels.csv wins where there is one (columns path, label, and
    optional patient_id and split). Otherwise the folders NORMAL and PNEUMONIA are read, directly under `root` or under
    train, val and test, names in any case of letters. Raises DataError, saying what was found instead.
    """
    if not root.is_dir():
        raise DataError(f"{printable(str(root))}: not a folder; give data.root=<folder of the images>")
    own = next((name for name in sorted(os.listdir(root)) if name.lower() == LABELS_FILE), None)
    try:
        if columns is not None:
            found = _by_columns(root, columns)
        elif own is not None:
            found = _by_own_table(root, root / own)
        else:
            found = _by_folders(root)
    except OSError as error:
        raise DataError(f"{printable(str(error.filename or root))}: cannot be read ({error.strerror})") from error
    found.listed.sort(key=lambda entry: entry.path)
    if not found.listed:
        raise DataError(
            f"{root}: no {', '.join(SUFFIXES)} files in folders NORMAL and PNEUMONIA, directly or under train, val, "
            f"test, and no {LABELS_FILE}; found {_some(root)}{_hint(root, found)}"
        )
    for index, name in enumerate(contract.LABELS):
        if not any(entry.label == index for entry in found.listed):
            raise DataError(
                f"{root}: {len(found.listed)} images, none of them {name}; both classes are needed; found {_some(root)}"
            )
    return found


def _some(root: Path, most: int = 8) -> str:
    """The first few names in a folder, for a message."""
    names = sorted(printable(entry.name) for entry in root.iterdir() if not entry.name.startswith("."))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"


def _hint(root: Path, found: Found) -> str:
    """Where the user may have meant to point, and why nothing was used."""
    classes = {*(name.lower() for name in contract.LABELS), *PARTS}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        if any(below.name.lower() in classes for below in folder.iterdir() if below.is_dir()):
            return f"; did you mean data.root={folder}?"
    tables = [entry.name for entry in root.iterdir() if entry.suffix.lower() == ".csv"]
    if tables and not found.left_out:
        return f"; a table such as {tables[0]} is read with data.labels="
    if found.left_out:
        why, count = next(iter(found.reasons().items()))
        return f"; {count} files were left out ({why}), such as {printable(found.left_out[0][0])}"
    return ""


def _by_folders(root: Path) -> Found:
    found, errors = Found(), list[OSError]()
    for folder, names in walk(str(root), errors.append):
        below = os.path.relpath(folder, root)
        parts = [] if below == "." else below.split(os.sep)
        part = PARTS.get(parts[0].lower()) if parts else None
        label = _LABEL_INDEX.get(parts[-1].upper()) if len(parts) == (2 if part else 1) else None
        for name in names:
            path = os.path.normpath(os.path.join(below, name))
            if name.startswith(".") or path == SOURCE_FILE:
                continue
            if not is_image(name, _head_or_nothing(os.path.join(folder, name))):
                found.left_out.append((path, "no image that is read, by its content"))
            elif label is not None:
                found.listed.append(Listed(path, label, None, part))
            else:
                found.left_out.append((path, _why_unused(parts, part)))
    if errors:
        raise errors[0]
    return found


def _why_unused(parts: list[str], part: str | None) -> str:
    """Why an image of these folders has no label. Raises DataError for one below a class folder, which is in doubt."""
    at = 1 if part else 0
    if len(parts) > at + 1 and parts[at].upper() in _LABEL_INDEX:
        where = "/".join(parts[: at + 1])
        raise DataError(
            f"{printable(where)}: has images in a folder of its own, {printable('/'.join(parts[at + 1 :]))}; put them "
            f"directly under {printable(parts[at])}, or list them in a {LABELS_FILE} with path,label,patient_id"
        )
    return "in no folder NORMAL or PNEUMONIA, directly or under train, val or test"


def _head_or_nothing(path: str) -> Callable[[], bytes]:
    def head() -> bytes:
        try:
            return head_of(path)
        except OSError:
            return b""

    return head


def _by_own_table(root: Path, table: Path) -> Found:
    seen: dict[str, int] = {}
    found = Found()
    for row in labelled(table, None):
        where = f"{table} line {row.line}"
        if not row.path or not (root / row.path).is_file():
            raise DataError(f"{where}: {printable(row.path) or 'an empty path'} is not a file under {root}")
        places = os.path.normpath(root / row.path), os.path.realpath(root / row.path)
        if not any(Path(place).is_relative_to(root) for place in places):
            raise DataError(
                f"{where}: {printable(row.path)} is outside {root}; put it there, or give the folder that holds both "
                "as data.root="
            )
        if row.path in seen:
            raise DataError(
                f"{where}: {printable(row.path)} stands on line {seen[row.path]} already; remove one of them"
            )
        seen[row.path] = row.line
        assert row.label is not None  # A label of our own table is one of two, or an error.
        found.listed.append(Listed(row.path, row.label, row.patient, row.part))
    found.left_out = list(_unlisted(root, table, seen))
    return found


def _by_columns(root: Path, columns: Columns) -> Found:
    """Rows of one image are one: PNEUMONIA where any of them is, because several say where, or who found it."""
    table, files, found = Path(columns.labels), Files(root), Found()
    entries: dict[str, Listed] = {}
    unclear: dict[str, str] = {}
    for row in labelled(table, columns):
        path = files.find(row.path)
        if path is None:
            found.left_out.append((row.path, "in the table, and not a file below the folder"))
        elif row.label is None:
            unclear.setdefault(path, "its label is neither class")
        else:
            known = entries.get(path)
            label = row.label if known is None else max(known.label, row.label)
            entries[path] = Listed(path, label, row.patient or (known.patient if known else None), row.part)
    found.left_out += [(path, why) for path, why in unclear.items() if path not in entries]
    found.listed = list(entries.values())
    found.left_out += _unlisted(root, table, {*entries, *unclear})
    if not entries:
        example = f", such as {printable(found.left_out[0][0])}" if found.left_out else ""
        raise DataError(
            f"{table}: none of its rows has an image below {root} and a label{example}; check data.path_column= and "
            "data.root="
        )
    return found


def _unlisted(root: Path, table: Path, listed: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Images below `root` that a table does not name."""
    known = {os.path.normpath(path) for path in listed}
    for folder, names in walk(str(root), lambda error: None):
        for name in names:
            path = os.path.normpath(os.path.relpath(os.path.join(folder, name), root))
            absolute = os.path.join(folder, name)
            if path in known or absolute in known or absolute == str(table) or path == SOURCE_FILE:
                continue
            if is_image(name, _head_or_nothing(absolute)):
                yield path, "not in the table, or in a row that does not count"
