"""Image files to the pixel cache: parallel decoding, exact duplicates and unreadable files left out."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pneumonia import contract
from pneumonia.core.image import read_image
from pneumonia.core.preprocess import Preprocessing, pixels
from pneumonia.data.parallel import parallel_map
from pneumonia.data.sources.folder import Listed
from pneumonia.errors import DataError, DependencyMissing, ImageError
from pneumonia.files import printable

_SHOWN = 10
"""Unreadable files named on stderr; the manifest names all."""


@dataclass
class Decoded:
    """Rows of a listing after decoding."""

    kept: list[int] = field(default_factory=list)
    """Rows in the order of the cache, ascending."""
    digests: list[str] = field(default_factory=list)
    """Hex SHA-256 of the file of each kept row."""
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    """Row, and why it cannot be read."""
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    """Row, and the kept row with the same bytes."""


def decode(root: Path, listed: Sequence[Listed], cache: Path, workers: int) -> Decoded:
    """Write the pixels of every distinct readable image to `cache`, a NumPy file of uint8 (kept, 224, 224).

    Of files with the same bytes the first is kept. Raises DataError where they have two labels, and where no image can
    be read. workers: processes, 0 for one a core.
    """
    started = time.monotonic()
    result = Decoded()
    first: dict[str, int] = {}
    paths = [str(root / entry.path) for entry in listed]
    # Written as a stream: a full disk is then an error with a message, where a memory map would kill the process.
    with cache.open("wb") as stream:
        _write_header(stream, len(listed))
        for row, (image, text) in enumerate(parallel_map(_read, paths, workers, "prepare")):
            if image is None:
                result.unreadable.append((row, printable(text)))
            elif text in first:
                _check_same_label(listed[first[text]], listed[row])
                result.duplicates.append((row, first[text]))
            else:
                first[text] = row
                stream.write(image.tobytes())
                result.kept.append(row)
                result.digests.append(text)
        # NumPy pads the header so that the first axis can change without moving what follows.
        stream.seek(0)
        _write_header(stream, len(result.kept))
    _report(root, result, len(listed), time.monotonic() - started)
    return result


def _read(path: str) -> tuple[npt.NDArray[np.uint8] | None, str]:
    """Decode one file: its pixels and SHA-256, or None and why not."""
    try:
        data = read_image(Path(path))
        return pixels(data, Preprocessing(), Path(path).name), hashlib.sha256(data).hexdigest()
    except (ImageError, DependencyMissing) as error:
        return None, str(error)


def _write_header(stream: BinaryIO, count: int) -> None:
    shape = (count, contract.IMAGE_SIZE, contract.IMAGE_SIZE)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]


def _check_same_label(one: Listed, other: Listed) -> None:
    """One image under two labels has one wrong label; only the user can tell which."""
    if one.label != other.label:
        raise DataError(
            f"{printable(one.path)} and {printable(other.path)} are the same image with two labels, "
            f"{contract.LABELS[one.label]} and {contract.LABELS[other.label]}; remove the wrong one"
        )


def _report(root: Path, result: Decoded, count: int, seconds: float) -> None:
    """Say on stderr what was left out. Raises DataError where nothing is left."""
    if not result.kept:
        raise DataError(f"{root}: none of {count} images can be read; the first: {result.unreadable[0][1]}")
    for _, why in result.unreadable[:_SHOWN]:
        print(f"warning: left out, {why}", file=sys.stderr)
    if (more := len(result.unreadable) - _SHOWN) > 0:
        print(f"warning: left out, {more} more files; {contract.DATA_MANIFEST} names them", file=sys.stderr)
    print(
        f"prepare: {len(result.kept)} images in {seconds:.1f} s, {len(result.duplicates)} exact duplicates and "
        f"{len(result.unreadable)} unreadable files left out",
        file=sys.stderr,
    )
