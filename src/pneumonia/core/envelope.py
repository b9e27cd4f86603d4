"""What surrounds the pixels of a JPEG or PNG file: its kind, its scans, and remarks that nobody needs to read."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from pneumonia.errors import ImageError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 200
"""Of a JPEG file. A progressive one has about 10; each costs time by the pixel, and nearly nothing in the file."""
MAX_SCANNED = 1_600_000_000
"""Most pixels times scans."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""The next marker in compressed data, where 0xFF is followed by 0 or by the number of a restart."""
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_KINDS = {0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xCB: "lossless",
          0xCD: "hierarchical", 0xCE: "hierarchical", 0xCF: "hierarchical", 0xF7: "JPEG-LS"}  # fmt: skip
_KEPT_SEGMENTS = (0xE0, 0xEE)
"""Application segments that say what the pixels are: JFIF, and Adobe's colour transform."""
_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG file, up to its end mark or to what is no segment."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, start = found[1][0], found.start()
        if marker in _ALONE:
            at = found.end()
            continue
        if marker == 0xD9 or found.end() + 2 > len(data):
            yield marker, start, found.end()
            return
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield marker, start, at


def scans(data: bytes) -> int:
    """How many scans a JPEG file has."""
    # Thumbnails and what follows the picture may have the pair of bytes as well, so many of them are looked at closely.
    count = data.count(b"\xff\xda")
    return count if count <= 1 else sum(marker == 0xDA for marker, _, _ in _segments(data))


def check_scans(data: bytes, name: str, pixels: int) -> None:
    """Raise ImageError for a JPEG file of more scans than a radiograph has, before any of them is decoded."""
    count = scans(data) if data[:2] == b"\xff\xd8" else 1
    if count > MAX_SCANS or count * pixels > MAX_SCANNED:
        raise ImageError(
            f"{name}: a JPEG of {count} scans, which takes very long to decode; at most {MAX_SCANS} are read, and "
            f"{MAX_SCANNED:,} pixels in all scans; save it again"
        )


def jpeg_kind(data: bytes) -> str | None:
    """What kind of JPEG file this is where it is a kind that Pillow does not read: "lossless", "12-bit"; else None."""
    if data[:2] != b"\xff\xd8":
        return None
    for marker, start, _ in _segments(data):
        if marker in _KINDS:
            return _KINDS[marker]
        if marker in _START_OF_FRAME:
            bits = data[start + 4 : start + 5]
            return f"{bits[0]}-bit" if bits and bits[0] != 8 else None
    return None


def png_depth(data: bytes) -> int:
    """Bits of a sample of a PNG file; 0 where it is none."""
    return data[24] if data.startswith(PNG_MAGIC) and len(data) > 24 else 0


def without_remarks(data: bytes) -> bytes:
    """The file without remarks, profiles and previews, whose damage is none of the picture's. `data` where it has none.

    Rotation is among what goes.
    """
    if data.startswith(PNG_MAGIC):
        return PNG_MAGIC + b"".join(body for kind, body in _chunks(data) if kind in _KEPT_CHUNKS)
    if data[:2] != b"\xff\xd8":
        return data
    kept = [data[:2]]
    for marker, start, end in _segments(data):
        if marker == 0xDA:
            return b"".join([*kept, data[start:]])
        if marker in _KEPT_SEGMENTS or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[start:end])
    return data


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each chunk of a PNG file, as it stands there."""
    at = len(PNG_MAGIC)
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at : at + 12 + length]
        at += 12 + length
