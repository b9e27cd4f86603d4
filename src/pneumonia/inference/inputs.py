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
from typing import IO, BinaryIO

from pneumonia.core.image import MAX_BYTES, read_image
from pneumonia.core.listing import HEAD, head_of, is_image, walk
from pneumonia.errors import BadInput, ImageError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_HEADER = 1 << 20
"""Most bytes of a member's name and notes in a tar archive; they are unpacked as a whole."""
EXAMPLES = 3
"""Names that are kept of files that are left out."""
_PIECE = 1 << 20
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError,
           ValueError)  # fmt: skip
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
        self.given = tuple(given)
        self._sources = [(_source(one), one) for one in given]
        self.skipped = 0
        """Files of the last iteration that were left out because they are no images by name and content."""
        self.left_out: list[str] = []
        """The first of their names."""
        self._archive: tuple[BinaryIO, int] | None = None

    def __iter__(self) -> Iterator[Item]:
        self.skipped, self.left_out = 0, []
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
        for folder, names in walk(one, errors.append):
            yield from self._unlisted(errors)
            for name in names:
                path = os.path.join(folder, name)
                if self._wanted(name, functools.partial(_head, path), path):
                    yield from self._file(path)
        yield from self._unlisted(errors)

    def _unlisted(self, errors: list[OSError]) -> Iterator[Item]:
        """A folder that cannot be listed, as an image with that error."""
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
                    head = functools.partial(_read_zip, archive, info, HEAD)
                    if not info.is_dir() and self._wanted(info.filename, head, f"{one}/{info.filename}"):
                        read = functools.partial(_read_zip, archive, info)
                        yield Item(f"{one}/{info.filename}", read, serial=True)
        except _BROKEN as error:
            yield Item(one, functools.partial(_fail, f"damaged archive ({error})"))

    def _tar(self, one: str) -> Iterator[Item]:
        last = "its start"
        try:
            with open(one, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*", tarinfo=_Member) as archive:
                self._archive = raw, os.path.getsize(one)
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # It remembers every member else.
                    content = _Content(archive, member)
                    name = f"{one}/{member.name.removeprefix('./')}"
                    if member.isdir():
                        continue
                    if member.islnk() and is_image(member.name, bytes):
                        # An archive that is read from front to back has passed what the link stands for.
                        why = f"a link to {member.linkname} in the archive; unpack it to score this one"
                        yield Item(name, functools.partial(_fail, why))
                    elif member.isreg() and self._wanted(member.name, content.head, name):
                        last = member.name
                        yield Item(name, content.read, serial=True)
                    elif not member.isreg():
                        self._leave_out(name)
        except _BROKEN as error:
            yield Item(one, functools.partial(_fail, f"damaged archive after {last} ({error})"))

    def _wanted(self, name: str, head: Callable[[], bytes], path: str) -> bool:
        try:
            taken = is_image(name, head)
        except ImageError:
            taken = True  # It is named again, with its error, when it is read.
        if not taken:
            self._leave_out(path)
        return taken

    def _leave_out(self, path: str) -> None:
        self.skipped += 1
        if len(self.left_out) < EXAMPLES:
            self.left_out.append(path)


class _Member(tarfile.TarInfo):
    """A member whose header is of bounded size: tarfile unpacks long names and notes of any length into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """See tarfile.TarInfo. Raises ReadError."""
        member = super().frombuf(buf, encoding, errors)
        notes = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                 tarfile.SOLARIS_XHDTYPE)  # fmt: skip
        if member.type in notes and member.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes; at most {MAX_HEADER:,} are read")
        return member


class _Content:
    """What a member of a tar archive holds, from front to back: its first bytes once, then all of them once."""

    def __init__(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self.archive, self.member = archive, member
        self._start: bytes | None = None
        self._stream: IO[bytes] | None = None

    def head(self) -> bytes:
        """The first HEAD bytes."""
        if self._start is None:
            try:
                self._stream = self.archive.extractfile(self.member)
                self._start = self._stream.read(HEAD) if self._stream is not None else b""
            except _BROKEN as error:
                raise ImageError(f"damaged member of the archive ({error})") from error
        return self._start

    def read(self) -> bytes:
        """All of it. Raises ImageError."""
        _check_size(self.member.size)
        start = self.head()
        assert self._stream is not None  # It is a regular file.
        try:
            return start + self._stream.read()
        except _BROKEN as error:
            raise ImageError(f"damaged member of the archive ({error})") from error


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


def _fail(message: str) -> bytes:
    raise ImageError(message)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(f"{size:,} bytes; at most {MAX_BYTES:,} are read, scale the image down")


def _head(path: str) -> bytes:
    try:
        return head_of(path)
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int | None = None) -> bytes:
    """The first `most` bytes of a member, or all of them. Raises ImageError."""
    if most is None:
        _check_size(info.file_size)
    try:
        with archive.open(info) as stream:
            if most is not None:
                return stream.read(most)
            # Pieces: asked for all of them at once, zipfile holds them twice.
            return b"".join(iter(lambda: stream.read(_PIECE), b""))
    except _BROKEN as error:
        raise ImageError(f"damaged member of the archive ({error})") from error
