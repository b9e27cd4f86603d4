"""JPEG and PNG files that are odd: the picture counts, remarks about it do not, and what is refused is said truly."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pneumonia.core.envelope import MAX_SCANS, scans
from pneumonia.core.image import decode_image
from pneumonia.core.preprocess import Preprocessing, pixels
from pneumonia.errors import ImageError
from tests.core.fuzz_images import chunks, png


def gradient() -> np.ndarray:
    return np.linspace(0, 255, 96 * 72).reshape(72, 96).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, "x"))


def exif_of(orientation: int, other: bytes) -> bytes:
    """EXIF of an orientation and one more entry, 12 bytes as given."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + other
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)


@pytest.mark.parametrize(
    "other",
    [
        struct.pack("<HHII", 0x8769, 3, 1, 7),  # a folder of entries that is no folder
        struct.pack("<HHII", 0x011A, 5, 1, 0xFFFFFF),  # a fraction beyond the end
        struct.pack("<HHII", 0x0132, 4, 1, 9),  # a date that is a number
        struct.pack("<HHII", 0x8298, 12, 2, 3),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6, 200])
def test_a_damaged_remark_beside_the_orientation_costs_nothing(orientation: int, other: bytes) -> None:
    data = encode(gradient(), "JPEG", quality=95, exif=exif_of(orientation, other))
    plain = shown(encode(gradient(), "JPEG", quality=95))
    found = shown(data)
    assert (found == (np.rot90(plain, -1) if orientation == 6 else plain)).all()


@pytest.mark.parametrize("kind", ["zip", "itxt", "icc"])
def test_three_megabytes_of_remarks_do_not_matter(kind: str) -> None:
    notes, profile = PngImagePlugin.PngInfo(), None
    if kind == "zip":
        notes.add_text("Comment", "a" * 3_000_000, zip=True)
    elif kind == "itxt":
        notes.add_itxt("XML:com.adobe.xmp", "b" * 3_000_000, zip=True)
    else:
        profile = bytes(3_000_000)
    assert (shown(encode(gradient(), pnginfo=notes, icc_profile=profile)) == gradient()).all()


def test_a_chunk_of_remarks_with_a_wrong_checksum_does_not_matter() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "chest")
    data = encode(gradient(), pnginfo=notes)
    broken = data.replace(b"chest", b"chess")
    assert broken != data
    assert (shown(broken) == gradient()).all()
    at = data.index(b"IDAT") + 20
    with pytest.raises(ImageError, match="damaged image data"):
        decode_image(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("marked", [False, True])
def test_fewer_bits_in_a_16_bit_png_are_refused(bits: int, colour: bool, marked: bool) -> None:
    values = (gradient().astype(np.uint16) << 8) >> (16 - bits)
    if marked:
        values[:3, :3] = 65535
    if colour:
        rows = b"".join(b"\0" + np.repeat(row[:, None], 3, axis=1).astype(">u2").tobytes() for row in values)
        head = struct.pack(">IIBBBBB", 96, 72, 16, 2, 0, 0, 0)
        data = png([(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    else:
        data = encode(Image.fromarray(values))
    with pytest.raises(ImageError, match=r"a 16-bit PNG whose values hardly exceed .* send the DICOM file"):
        decode_image(data)


@pytest.mark.parametrize("value", [0, 90, 255])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("marked", [False, True])
def test_an_image_without_contrast_is_refused(value: int, kind: str, marked: bool) -> None:
    blank = np.full((200, 200), value, np.uint8)
    if marked:
        blank[10:14, 10:14] = 255 - value
    with pytest.raises(ImageError, match=f"without contrast, nearly all of it between {value} and {value} of 255"):
        decode_image(encode(blank, kind, quality=95))


def test_a_dull_radiograph_is_read() -> None:
    dull = (gradient() // 12 + 100).astype(np.uint8)
    assert (shown(encode(dull)) == dull).all()


@pytest.mark.parametrize("side", [16, 32, 63])
def test_an_image_too_small_to_show_a_chest_is_refused(side: int) -> None:
    small = Image.fromarray(gradient()).resize((side, 200))
    with pytest.raises(ImageError, match=f"{side}x200 pixels; a radiograph of at least 64x64 is needed"):
        decode_image(encode(small))


def progressive(image: Image.Image, more: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = encode(image, "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * more + data[end:]


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    large = Image.new("L", (6000, 6000))
    data = progressive(large, 40_000)
    began = time.process_time()
    with pytest.raises(ImageError, match=f"scans, which takes very long to decode; at most {MAX_SCANS} are read"):
        decode_image(data, "x", 448)
    assert time.process_time() - began < 2  # decoding takes minutes
    assert len(data) < 100_000_000
    with pytest.raises(ImageError, match="pixels in all scans"):
        decode_image(progressive(large, 100), "x", 448)


def test_a_file_of_nothing_but_markers_is_looked_through_once() -> None:
    began = time.process_time()
    assert scans(b"\xff\xd8" + b"\xff" * 20_000_000 + b"\xff\xda\xff\xda") <= 2
    assert time.process_time() - began < 5


def test_an_ordinary_progressive_jpeg_and_a_padded_one_are_read() -> None:
    image = Image.fromarray(gradient())
    data = encode(image, "JPEG", progressive=True, quality=95)
    assert 1 < scans(data) < 20
    assert np.abs(shown(data).astype(int) - gradient()).mean() < 2
    # What follows the picture is no scan, nor is what stands in remarks.
    assert (shown(data + b"\xff\xda\0\x08" * 500) == shown(data)).all()
    assert (shown(encode(image, "JPEG", progressive=True, quality=95, comment=b"\xff\xda" * 500)) == shown(data)).all()


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"\xff\xc1\x00\x0b\x0c", "a 12-bit JPEG, which is not read here"),
        (b"\xff\xc3\x00\x0b\x08", "a lossless JPEG"),
        (b"\xff\xc5\x00\x0b\x08", "a hierarchical JPEG"),
        (b"\xff\xf7\x00\x0b\x08", "a JPEG-LS JPEG"),
    ],
)
def test_a_kind_of_jpeg_that_is_not_read_is_named(frame: bytes, says: str) -> None:
    data = b"\xff\xd8\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0" + frame + b"\x00\x48\x00\x60\x01\x01\x11\x00"
    with pytest.raises(ImageError, match=says):
        decode_image(data + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(500) + b"\xff\xd9")


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"progressive": True})])
def test_ordinary_images_are_what_pillow_makes_of_them(kind: str, options: dict[str, object]) -> None:
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 10), dtype=np.uint8))
    data = encode(coarse.resize((1100, 900), Image.Resampling.BICUBIC), kind, **options)
    spec = Preprocessing()
    plain = Image.open(io.BytesIO(data))
    plain.draft("L", (spec.least_side, spec.least_side))
    expected = np.asarray(plain.convert("L").resize((224, 224), Image.Resampling.BILINEAR))
    assert (pixels(data, spec) == expected).all()


def test_the_chunks_of_a_png_put_together_again_are_the_file() -> None:
    data = encode(gradient())
    assert png(chunks(data)) == data
