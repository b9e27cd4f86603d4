"""What bulk scoring is given: files, folders, patterns, lists, archives; as one stream of images in a fixed order."""

from __future__ import annotations

import functools
import glob
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pneumonia.core.dicom import is_dicom
from pneumonia.core.image import MAX_BYTES, read_image
from pneumonia.errors import BadInput, ImageError

SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".dicom")
"""Taken from folders and archives; files without a suffix, as DICOM exports have them, where their content says so."""
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_HEAD = 132
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError,
           NotImplementedError, ValueError)  # fmt: skip
"""What damaged, encrypted and unknown archives raise."""


@dataclass(frozen=True)
class Item:
    """One image. name: as it stands in the results. read: its bytes, or ImageError.

    serial: to be read before the next item is taken, because an archive is read from front to back.
    """

    name: str
    read: Callable[[], bytes]
    serial: bool = False


class Inputs:
    """Iterates over the images of all inputs, the same ones in the same order each time.

    given: a file; a folder with all below it; a pattern (`*`, `?`, `[...]`, `**`); `@list`, a text file of one path a
    line, relative to the working folder; a .zip or .tar, compressed or not, which is read where it lies. Raises
    BadInput at once for an input that is not there. An archive or folder that breaks off becomes an image with an
    error, under its own name.
    """

    def __init__(self, given: Sequence[str]) -> None:
        self._sources = [(_source(one), one) for one in given]
        self.skipped = 0
        """Files of the last iteration that were left out because they are no images by their names."""
        self._archive: tuple[BinaryIO, int] | None = None

    def __iter__(self) -> Iterator[Item]:
        self.skipped = 0
        for source, one in self._sources:
            yield from source(self, one)

    def count(self) -> int | None:
        """How many images there are; None where only reading all of an archive would tell."""
        if any(source is Inputs._tar for source, _ in self._sources):
            return None
        return sum(1 for _ in self)

    def share(self) -> float | None:
        """How much of the only archive has been read, 0..1; None where there is more to read or less to know."""
        if len(self._sources) > 1 or self._archive is None:
            return None
        stream, size = self._archive
        return None if stream.closed else stream.tell() / max(size, 1)

    def _file(self, one: str) -> Iterator[Item]:
        yield Item(one, functools.partial(read_image, Path(one)))

    def _folder(self, one: str) -> Iterator[Item]:
        errors: list[OSError] = []
        for folder, below, names in os.walk(one, onerror=errors.append):
            below[:] = sorted(name for name in below if not _hidden(name))
            for name in sorted(names):
                path = os.path.join(folder, name)
                if self._wanted(name, functools.partial(_head, path)):
                    yield from self._file(path)
            while errors:
                error = errors.pop()
                yield Item(str(error.filename), functools.partial(_fail, f"cannot be listed ({error.strerror})"))

    def _pattern(self, one: str) -> Iterator[Item]:
        for path in sorted(glob.iglob(one, recursive=True)):
            if os.path.isfile(path):
                yield from self._file(path)

    def _list(self, one: str) -> Iterator[Item]:
        try:
            with open(one[1:], encoding="utf-8-sig", errors="surrogateescape") as lines:
                for line in lines:
                    if path := line.strip():
                        yield from self._file(path)
        except OSError as error:
            raise BadInput(f"{one}: cannot be read ({error.strerror})") from error

    def _zip(self, one: str) -> Iterator[Item]:
        try:
            with zipfile.ZipFile(one) as archive:
                for info in archive.infolist():
                    read = functools.partial(_read_zip, archive, info)
                    if not info.is_dir() and self._wanted(
                        info.filename, functools.partial(_read_zip, archive, info, _HEAD)
                    ):
                        yield Item(f"{one}/{info.filename}", read, serial=True)
        except _BROKEN as error:
            yield Item(one, functools.partial(_fail, f"damaged archive ({error})"))

    def _tar(self, one: str) -> Iterator[Item]:
        last = "its start"
        try:
            with open(one, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
                self._archive = raw, os.path.getsize(one)
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # It remembers every member else.
                    read = functools.cache(functools.partial(_read_tar, archive, member))
                    if member.isreg() and self._wanted(member.name, read):
                        last = member.name
                        yield Item(f"{one}/{member.name.removeprefix('./')}", read, serial=True)
        except _BROKEN as error:
            yield Item(one, functools.partial(_fail, f"damaged archive after {last} ({error})"))

    def _wanted(self, name: str, head: Callable[[], bytes]) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        taken = not _hidden(name) and suffix in SUFFIXES
        if not taken and not _hidden(name) and (not suffix or suffix[1:].isdigit()):
            try:
                taken = is_dicom(head())
            except ImageError:
                taken = True  # It is named again, with its error, when it is read.
        self.skipped += not taken
        return taken


def _source(one: str) -> Callable[[Inputs, str], Iterator[Item]]:
    """The method that reads this input."""
    path = Path(one.removeprefix("@"))
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except (OSError, ValueError) as error:
        raise BadInput(f"{one}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if one.startswith("@"):
        if not stat.S_ISREG(mode):
            raise BadInput(f"{one}: no list {one[1:]}; give @ and a text file of one path a line")
        return Inputs._list
    if stat.S_ISDIR(mode):
        return Inputs._folder
    if mode:
        lower = one.lower()
        return Inputs._zip if lower.endswith(".zip") else Inputs._tar if lower.endswith(ARCHIVES) else Inputs._file
    if glob.has_magic(one):
        if not any(os.path.isfile(found) for found in glob.iglob(one, recursive=True)):
            raise BadInput(f"{one}: no file of this pattern; ** stands for any folders")
        return Inputs._pattern
    raise BadInput(f"{one}: no such file or folder; give images, folders, patterns, .zip, .tar or @list")


def _hidden(name: str) -> bool:
    """Other programs' notes, such as those of macOS archives, and a DICOM medium's table of contents."""
    parts = name.removeprefix("./").split("/")
    return parts[-1] == "DICOMDIR" or any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _fail(message: str) -> bytes:
    raise ImageError(message)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(f"{size:,} bytes; at most {MAX_BYTES:,} are read, scale the image down")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_HEAD)
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int = MAX_BYTES + 1) -> bytes:
    try:
        with archive.open(info) as stream:
            data = stream.read(most)
    except _BROKEN as error:
        raise ImageError(f"damaged member of the archive ({error})") from error
    _check_size(len(data))
    return data


def _read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_size(member.size)
    try:
        stream = archive.extractfile(member)
        assert stream is not None  # It is a regular file.
        return stream.read()
    except _BROKEN as error:
        raise ImageError(f"damaged member of the archive ({error})") from error
