"""Finished rows on disk while a run lasts, and the results written from them in one piece."""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pneumonia.errors import DependencyMissing, PneumoniaError, StorageError, UsageError
from pneumonia.files import replace_file

COLUMNS = {"filename": "string", "prediction": "string", "confidence": "float64", "probability": "float64",
           "threshold": "float64", "uncertain": "bool_", "model_id": "string", "error": "string"}  # fmt: skip
"""Columns of the results and their Arrow types. error: why there is no answer; then all but filename are empty."""
_ROW_GROUP = 2_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

Row = dict[str, Any]


class Journal:
    """`<output>.partial`: one JSON line of settings, then one a row, in the order of the inputs.

    What `append` has returned from survives a kill and a power cut; a line that was half written is cut off when the
    journal is opened again. output: its suffix is one of FORMATS. settings: what the rows depend on. overwrite: replace
    results and a journal that are there already. Raises UsageError where there are results, a journal of other settings
    or one that is none, and for another suffix, DependencyMissing for parquet without pyarrow, PneumoniaError while
    another process writes it.
    """

    def __init__(self, output: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        check_output(output, overwrite)
        self.output = output
        self.path = _journal_of(output)
        self._safe = (0, 0)  # bytes, rows
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab+", buffering=0)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written ({error.strerror}); choose another place with -o"
            ) from error
        try:
            self._open(settings, overwrite)
        except BaseException:
            self._stream.close()
            raise

    def _open(self, settings: dict[str, Any], overwrite: bool) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PneumoniaError(
                f"{self.path}: another process is writing it; wait for it or use another -o"
            ) from error
        with self.path.open("rb") as stored:
            first = _line(settings)
            head = stored.read(len(first))
            if head == first and not overwrite:
                end, rows = len(head), 0
                while (line := stored.readline()).endswith(b"\n"):
                    end, rows = end + len(line), rows + 1
                self._safe = (end, rows)
                return
        # A kill may have left only the beginning of the first line, or a server that was away no row.
        if not first.startswith(head) and not overwrite and not self._empty(settings):
            raise UsageError(
                f"{self.path}: the rows of a run with other inputs or another model, or no rows at all; repeat that "
                "run to finish it, or begin anew with --overwrite"
            )
        self._write([settings], rows=0)

    def _empty(self, settings: dict[str, Any]) -> bool:
        """Whether this is a journal of other settings without a whole row."""
        with self.path.open("rb") as stored:
            try:
                known = json.loads(stored.readline())
                return bool(known.keys() == settings.keys()) and not stored.readline().endswith(b"\n")
            except (ValueError, AttributeError):
                return False

    @property
    def rows(self) -> int:
        """Rows that are safe."""
        return self._safe[1]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[Row]:
        """The safe rows, in order."""
        with self.path.open("rb") as stream:
            stream.readline()
            for line in islice(stream, self.rows):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UsageError(f"{self.path}: damaged ({error}); begin anew with --overwrite") from error

    def append(self, rows: Sequence[Row]) -> None:
        """Keep rows; they are on the disk when `rows` counts them. Raises StorageError where the disk is full."""
        self._write(rows, self.rows + len(rows))

    def _write(self, values: Sequence[Row], rows: int) -> None:
        data = b"".join(map(_line, values))
        end = self._safe[0]
        try:
            # What an interrupted call wrote goes first.
            os.ftruncate(self._stream.fileno(), end)
            rest = memoryview(data)
            while rest:
                rest = rest[self._stream.write(rest) :]
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({error.strerror}); free some space") from error
        self._safe = (end + len(data), rows)

    def finish(self) -> None:
        """Write the results and remove the journal. A kill before the end leaves the journal, and this is repeated."""
        try:
            with replace_file(self.output) as stream:
                FORMATS[self.output.suffix](stream, map(_printable, self))
        except OSError as error:
            raise StorageError(
                f"{self.output}: cannot be written ({error.strerror or error}); free some space"
            ) from error
        self.path.unlink()


def check_output(output: Path, overwrite: bool) -> None:
    """Everything about the name that can be known before anything is read. Raises as `Journal` does."""
    if output.suffix not in FORMATS:
        raise UsageError(f"-o {output}: the name's end is the format, one of {', '.join(FORMATS)}")
    if output.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise DependencyMissing(
            "parquet is written with pyarrow: pip install 'pneumonia[parquet]', or choose .csv or .jsonl"
        )
    # Unlike Path's, these say False where a folder may not be entered; opening the journal says why.
    there, begun = os.path.exists(output), os.path.exists(_journal_of(output))
    if os.path.isdir(output) or (there and not overwrite and not begun):
        raise UsageError(f"-o {output}: is there already; choose another name, or replace it with --overwrite")


def _line(value: Row) -> bytes:
    # ASCII alone: the bytes of a name that are not UTF-8 come back as they were.
    return json.dumps(value).encode("ascii") + b"\n"


def _journal_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _printable(row: Row) -> Row:
    """A name that is not UTF-8 cannot be written as it is."""
    return {**row, "filename": row["filename"].encode("utf-8", "surrogateescape").decode("utf-8", "replace")}


def _no_formula(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula, with an apostrophe in front, which spreadsheets hide."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _write_csv(stream: BinaryIO, rows: Iterator[Row]) -> None:
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    table = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    text.detach()


def _write_jsonl(stream: BinaryIO, rows: Iterator[Row]) -> None:
    stream.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _write_parquet(stream: BinaryIO, rows: Iterator[Row]) -> None:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()])
    with pyarrow.parquet.ParquetWriter(stream, schema) as table:
        while group := list(islice(rows, _ROW_GROUP)):
            table.write_table(pyarrow.Table.from_pylist(group, schema))


FORMATS: dict[str, Callable[[BinaryIO, Iterator[Row]], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
"""How results are written, by the suffix of their file."""
