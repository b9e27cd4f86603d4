"""Encoded bytes in, one channel of pixels out."""

from __future__ import annotations

import binascii
import io
import struct
import warnings
import zlib
from base64 import b64decode
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from pneumonia.core.dicom import decode_dicom, is_dicom
from pneumonia.core.envelope import PNG_MAGIC, check_scans, jpeg_kind, png_depth, without_remarks
from pneumonia.errors import ImageError

MAX_PIXELS = 64_000_000
"""Largest image decoded, width x height. Detector images are below 25 megapixels; a bomb is far above."""
MAX_BYTES = 256 << 20
"""Most bytes read of one file. The largest image decoded has about half of them, uncompressed at 16 bits."""
_CHUNK = 1 << 16
MIN_SIDE = 64
"""Smallest side accepted, in pixels: below it a healthy chest is so blurred that it looks ill."""
MIN_CONTRAST = 8
"""Least distance of dark and bright, in grey levels of 256, the hundredth at either end left out."""
FORMATS = ("JPEG", "PNG")
_LEAST_WHITE = 64
_ORIENTATION = 0x0112
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # fmt: skip
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, MemoryError,
            OverflowError, ZeroDivisionError, struct.error, zlib.error)  # fmt: skip
"""What Pillow raises for files that are not whole."""
_HIGH_BIT_MODES = ("I;16", "I;16L", "I;16B", "I")


def read_image(path: Path) -> bytes:
    """Bytes of an image file.

    Raises ImageError, naming the file, where it is missing, a directory, unreadable or larger than MAX_BYTES.
    """
    try:
        with path.open("rb") as stream:
            return read_stream(stream, str(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: cannot be read ({reason}); give the path of a JPEG, PNG or DICOM file") from error


def read_stream(stream: BinaryIO, name: str) -> bytes:
    """Bytes of an image from an open file. Raises ImageError where they are more than MAX_BYTES."""
    # Asked for all of them at once, Python sets aside that much memory for the smallest file.
    data = b"".join(islice(iter(lambda: stream.read(_CHUNK), b""), MAX_BYTES // _CHUNK + 1))
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: more than {MAX_BYTES >> 20} MiB; give the path of a JPEG, PNG or DICOM file")
    return data


def unwrap_base64(data: bytes) -> bytes:
    """The image inside `data`: `data` itself, or what its base64 text (optionally a data: URL) encodes.

    Encoded images start with bytes that are not base64 letters (0xFF, 0x89), so the two cannot be confused.
    """
    text = data.lstrip()
    if text.startswith(b"data:"):
        text = text.partition(b",")[2]
    head = text[:64].rstrip()
    if not head or not all((chr(byte).isalnum() and byte < 128) or byte in b"+/=\r\n" for byte in head):
        return data
    try:
        return b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return data


def decode_image(data: bytes, name: str = "image", least_side: int | None = None) -> Image.Image:
    """Decode JPEG, PNG or DICOM bytes to a single-channel 8-bit image, `mode == "L"`, upright.

    least_side: what comes may be smaller than the file's image, down to this many pixels a side. A JPEG file is then
    decoded at 1/2, 1/4 or 1/8, from the low frequencies of its blocks, which is an anti-aliased reduction; None: whole.

    A radiograph is monochrome: colour is reduced to luminance (ITU-R BT.601, which leaves grey pixels as they are),
    transparency is laid over black, 16 bits are scaled to 8, and EXIF rotation is applied. Damage of what is not the
    picture, such as EXIF, is passed over; the picture then stays as it lies.

    Raises ImageError, which starts with `name`, for anything else, for damaged data, for sides outside
    MIN_SIDE..MAX_PIXELS, for an image without contrast, for a 16-bit PNG of fewer bits, and for more scans than a
    radiograph has; DependencyMissing for a DICOM file without pydicom or without the decoder of its compression.
    """
    if not data:
        raise ImageError(f"{name}: empty, 0 bytes; a JPEG, PNG or DICOM image was expected")
    if is_dicom(data):
        image = decode_dicom(data, name, MAX_PIXELS, MIN_SIDE)
    else:
        image = _open(data, name, least_side)
        if png_depth(data) == 16:
            _check_range(image, name)
    dark, bright = _ends(image)
    if bright - dark < MIN_CONTRAST:
        raise ImageError(
            f"{name}: an image without contrast, nearly all of it between {dark} and {bright} of 255; send a radiograph"
        )
    return image


def _open(data: bytes, name: str, least_side: int | None) -> Image.Image:
    """The decoded image in grey, upright."""
    try:
        return _load(data, name, least_side)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more pixels than are safe to decode; scale it down") from error
    except _DAMAGED as error:
        # What is odd about remarks and profiles is no reason to lose the picture.
        with suppress(*_DAMAGED):
            bare = without_remarks(data)
            if bare != data:
                return _load(bare, name, least_side)
        raise ImageError(f"{name}: {_why(data, error)}") from error


def _load(data: bytes, name: str, least_side: int | None) -> Image.Image:
    with warnings.catch_warnings():
        # What is damaged is an error; a damaged remark beside whole pixels is no reason to talk.
        warnings.simplefilter("ignore")
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{name}: {width}x{height} pixels; at most {MAX_PIXELS:,} pixels are decoded, scale it down"
            )
        if min(width, height) < MIN_SIDE:
            raise ImageError(
                f"{name}: {width}x{height} pixels; a radiograph of at least {MIN_SIDE}x{MIN_SIDE} is needed"
            )
        check_scans(data, name, width * height)
        if least_side is not None:
            # Does nothing for PNG. "L" takes the luminance that the file holds instead of making colours of it.
            image.draft("L", (least_side, least_side))
        image.load()
        gray, turn = _to_gray(image), _turn(image)
        return gray if turn is None else gray.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the image upright, by its EXIF; None where that is in doubt. Nothing of EXIF is written again."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's parsers of odd EXIF and XMP raise nearly every class there is.
        return None


def _why(data: bytes, error: Exception) -> str:
    """What is wrong with a JPEG or PNG file that cannot be read, and what to do."""
    if kind := jpeg_kind(data):
        return f"a {kind} JPEG, which is not read here; save it as an ordinary JPEG of 8 bits, or send the DICOM file"
    if isinstance(error, UnidentifiedImageError) and data[:2] != b"\xff\xd8" and not data.startswith(PNG_MAGIC):
        return f"not an image this reads (starts with {data[:8]!r}); JPEG, PNG or DICOM was expected"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it; scale it down"
    text = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"damaged image data ({text}); send the file as it was written"


def _ends(image: Image.Image) -> tuple[int, int]:
    """The grey levels that a hundredth of the pixels lie below and above, less than that of which is a marker."""
    below = np.cumsum(image.histogram())
    dark, bright = np.searchsorted(below, (0.01 * below[-1], 0.99 * below[-1]))
    return int(dark), int(bright)


def _check_range(image: Image.Image, name: str) -> None:
    """Values of 10, 12 or 14 bits in 16 would be read as a nearly black picture."""
    if (bright := _ends(image)[1]) < _LEAST_WHITE:
        raise ImageError(
            f"{name}: a 16-bit PNG whose values hardly exceed {(bright + 1) << 8:,} of 65,535, as values of fewer bits "
            "do, and nothing says which is white; save it with 8 bits as a viewer shows it, or send the DICOM file"
        )


def _to_gray(image: Image.Image) -> Image.Image:
    """Any Pillow mode to "L"."""
    if image.mode == "L":
        return image
    if image.mode in _HIGH_BIT_MODES:
        samples = np.asarray(image)
        # Wider samples only where there are some: 16 bits of a large detector are many bytes already.
        samples = samples if samples.dtype.itemsize == 2 else np.clip(samples, 0, 65535)
        return Image.fromarray((samples >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        return ImageChops.multiply(rgba.convert("L"), rgba.getchannel("A"))
    return image.convert("L")
