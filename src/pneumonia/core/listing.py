"""What is an image, in a folder or an archive: one rule for preparing and for scoring."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from pneumonia.core.dicom import is_dicom
from pneumonia.core.envelope import PNG_MAGIC

SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".dicom")
"""Taken by their names, so that a damaged one is told. Of other names the content decides."""
HEAD = 132
"""Bytes of a file by which it is known."""


def hidden(name: str) -> bool:
    """Other programs' notes, such as those of macOS archives, and a DICOM medium's table of contents."""
    parts = name.removeprefix("./").replace("\\", "/").split("/")
    return parts[-1] in ("DICOMDIR", "Thumbs.db", "desktop.ini") or any(
        part.startswith(".") or part == "__MACOSX" for part in parts
    )


def is_image(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a file is to be read as an image: by its name, else by its first HEAD bytes."""
    if hidden(name):
        return False
    suffix = os.path.splitext(name)[1].lower()
    if suffix in SUFFIXES:
        return True
    start = head()
    if start.startswith((b"\xff\xd8\xff", PNG_MAGIC)) or start[128:132] == b"DICM":
        return True
    # Without magic a DICOM file has four bytes that many files have.
    return (not suffix or suffix[1:].isdigit()) and is_dicom(start)


def head_of(path: str) -> bytes:
    """The first HEAD bytes of a file. Raises OSError."""
    with open(path, "rb") as stream:
        return stream.read(HEAD)


def walk(root: str, failed: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `root` down and the names of its files, sorted, hidden folders left out; links are followed.

    A link to a folder that it lies in is not entered again. failed: told of each folder that cannot be listed.
    """
    yield from _walk(root, failed, frozenset())


def _walk(folder: str, failed: Callable[[OSError], None], above: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        failed(error)
        return
    below = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    inside = set(below)
    yield folder, [name for name in names if name not in inside]
    for name in below:
        if not hidden(name):
            yield from _walk(os.path.join(folder, name), failed, above | {here})
