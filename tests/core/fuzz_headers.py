"""Files whose pixels are whole and whose headers are not: EXIF blocks, PNG chunks beside the picture, DICOM elements.

`python -m tests.core.fuzz_headers COUNT SEED` prints how they ended; COUNT 20000 takes some minutes.
"""

from __future__ import annotations

import io
import json
import struct
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image, PngImagePlugin

from pneumonia.core.image import decode_image
from pneumonia.errors import ImageError, PneumoniaError
from tests.core.fuzz_images import PNG, Rng, chunks, png
from tests.dicoms import NAME, dicom, gradient, pydicom

PICTURE = np.linspace(0, 255, 96 * 72).reshape(72, 96).astype(np.uint8)


def exif(rng: Rng) -> bytes:
    """A JPEG with a changed, cut or lengthened EXIF block."""
    block = Image.Exif()
    block[0x0112], block[0x010E], block[0x0132] = int(rng.integers(1, 9)), "chest", "2020:01:01 00:00:00"
    block[0x011A] = 72.0
    block.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    body = _damaged(block.tobytes()[6:], rng)
    segment = b"Exif\0\0" + body
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]


def remark(rng: Rng) -> bytes:
    """A PNG with changed chunks beside the picture, their checksums right or wrong."""
    parts = [(kind, body) for kind, body in NOTED]
    at = int(rng.choice([number for number, (kind, _) in enumerate(parts) if kind not in WHOLE]))
    parts[at] = (parts[at][0], _damaged(parts[at][1], rng))
    if rng.integers(3) == 0:
        parts.insert(1, (bytes(rng.integers(97, 123, 4, np.uint8)), rng.bytes(int(rng.integers(60)))))
    data = png(parts)
    if rng.integers(4) == 0:
        found = data.index(parts[at][0])
        end = found + 4 + len(parts[at][1])
        data = data[:end] + rng.bytes(4) + data[end + 4 :]
    return data


def element(rng: Rng) -> bytes:
    """A DICOM file with changed bytes in front of its pixels."""
    data = bytearray(SCANS[rng.integers(len(SCANS))])
    end = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
    for at in rng.integers(132, end, int(rng.integers(1, 6))):
        data[at] = rng.integers(256) if rng.integers(2) else data[at] ^ (1 << int(rng.integers(8)))
    return bytes(data)


def tag(rng: Rng) -> bytes:
    """A DICOM file with one element emptied, removed or given another text."""
    made = pydicom.dcmread(io.BytesIO(SCANS[rng.integers(len(SCANS))]))
    keyword = str(rng.choice([one.keyword for one in made if one.keyword != "PixelData"]))
    choice = int(rng.integers(3))
    if choice == 0:
        delattr(made, keyword)
    else:
        value = b"" if choice == 1 else rng.bytes(int(rng.integers(1, 9)) * 2)
        number = pydicom.tag.Tag(keyword)
        kind = made[number].VR
        made[number] = pydicom.dataelem.RawDataElement(number, kind, len(value), value, 0, False, True)
    stream = io.BytesIO()
    made.save_as(stream)
    return stream.getvalue()


def _damaged(body: bytes, rng: Rng) -> bytes:
    changed = bytearray(body)
    choice = int(rng.integers(4))
    if choice == 0:
        return bytes(changed[: rng.integers(len(changed) + 1)])
    if choice == 1:
        return bytes(changed) + rng.bytes(int(rng.integers(40)))
    for at in rng.integers(0, len(changed), int(rng.integers(1, 6))):
        changed[at] = rng.integers(256)
    return bytes(changed)


def _encode(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, kind, **options)
    return stream.getvalue()


def _noted() -> list[tuple[bytes, bytes]]:
    notes, block = PngImagePlugin.PngInfo(), Image.Exif()
    notes.add_text("Comment", "a remark " * 9, zip=True)
    notes.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="1"/>')
    block[0x0112], block[0x010E] = 6, "chest"
    return chunks(_encode("PNG", pnginfo=notes, exif=block, icc_profile=bytes(200), dpi=(72, 72)))


JPEG = _encode("JPEG", quality=95)
NOTED = _noted()
WHOLE = (b"IHDR", b"IDAT", b"IEND")
SCANS = [
    dicom(gradient()),
    dicom(
        gradient(12), 12, RescaleSlope=2, RescaleIntercept=-5, WindowCenter=2000, WindowWidth=4000, ViewPosition="PA"
    ),
    dicom(gradient(12), 12, PhotometricInterpretation="MONOCHROME1", BodyPartExamined="CHEST", PixelPaddingValue=4095),
]
SHOWN = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
)  # fmt: skip
KINDS: dict[str, tuple[Callable[[Rng], bytes], bool]] = {
    "EXIF": (exif, True), "PNG chunks": (remark, True), "DICOM bytes": (element, False), "DICOM elements": (tag, False)
}  # fmt: skip
"""How files are made, and whether their pixels are whole whatever the header says."""


def _unchanged(data: bytes) -> bytes | None:
    """The file that this one was, where nothing changed that says how its pixels are shown."""
    try:
        made = pydicom.dcmread(io.BytesIO(data), force=True)
        shown = {keyword: str(made.get(keyword)) for keyword in SHOWN}
        kept = made.file_meta.get("TransferSyntaxUID")
        for scan in SCANS:
            other = pydicom.dcmread(io.BytesIO(scan))
            same = made.PixelData == other.PixelData and kept == other.file_meta.TransferSyntaxUID
            if same and shown == {keyword: str(other.get(keyword)) for keyword in SHOWN}:
                return scan
    except Exception:
        return None
    return None


def outcome(data: bytes, whole: bool) -> str:
    """How one file ends."""
    try:
        found = np.asarray(decode_image(data, "x.png")).astype(int)
    except PneumoniaError as error:
        if whole:
            return f"refused with whole pixels: {error}"
        if NAME in str(error):
            return f"names the patient: {error}"
        return "refused" if str(error).startswith("x.png: ") or not isinstance(error, ImageError) else f"says {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    if not whole:
        expected_scan = _unchanged(data)
        same = expected_scan is None or (found == np.asarray(decode_image(expected_scan))).all()
        return "read" if same else "another picture"
    expected = np.asarray(Image.open(io.BytesIO(JPEG if not data.startswith(PNG) else _encode("PNG")))).astype(int)
    turns = [np.rot90(side, turn) for side in (expected, expected.T) for turn in range(4)]
    return "read" if any(found.shape == one.shape and (found == one).all() for one in turns) else "another picture"


def main(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = list(KINDS)
    ends: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for number in range(count):
        kind = kinds[number % len(kinds)]
        make, whole = KINDS[kind]
        ends[kind][outcome(make(rng), whole)] += 1
    print(json.dumps(ends))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
