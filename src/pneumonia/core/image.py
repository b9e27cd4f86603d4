"""Encoded bytes in, one channel of pixels out."""

from __future__ import annotations

import binascii
import io
import struct
import warnings
from base64 import b64decode
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from pneumonia.core.dicom import decode_dicom, is_dicom
from pneumonia.errors import ImageError

MAX_PIXELS = 64_000_000
"""Largest image decoded, width x height. Detector images are below 25 megapixels; a bomb is far above."""
MAX_BYTES = 256 << 20
"""Most bytes read of one file. The largest image decoded has about half of them, uncompressed at 16 bits."""
_CHUNK = 1 << 16
MIN_SIDE = 16
"""Smallest side accepted, in pixels: below it there is nothing of a chest to see."""
FORMATS = ("JPEG", "PNG")
_HIGH_BIT_MODES = ("I;16", "I;16L", "I;16B", "I")


def read_image(path: Path) -> bytes:
    """Bytes of an image file.

    Raises ImageError, naming the file, where it is missing, a directory, unreadable or larger than MAX_BYTES.
    """
    try:
        with path.open("rb") as stream:
            # Asked for all of them at once, Python sets aside that much memory for the smallest file.
            data = b"".join(islice(iter(lambda: stream.read(_CHUNK), b""), MAX_BYTES // _CHUNK + 1))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: cannot be read ({reason}); give the path of a JPEG, PNG or DICOM file") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"{path}: more than {MAX_BYTES >> 20} MiB; give the path of a JPEG, PNG or DICOM file")
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
    transparency is laid over black, 16 bits are scaled to 8, and EXIF rotation is applied.

    Raises ImageError, which starts with `name`, for anything else, for damaged data, and for sides outside
    MIN_SIDE..MAX_PIXELS; DependencyMissing for a DICOM file without pydicom.
    """
    if not data:
        raise ImageError(f"{name}: empty, 0 bytes; a JPEG, PNG or DICOM image was expected")
    if is_dicom(data):
        return decode_dicom(data, name, MAX_PIXELS, MIN_SIDE)
    try:
        with warnings.catch_warnings():
            # What is damaged is an error below; a damaged remark beside whole pixels is no reason to talk.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    f"{name}: {width}x{height} pixels; at most {MAX_PIXELS:,} pixels are decoded, scale it down"
                )
            if min(width, height) < MIN_SIDE:
                raise ImageError(
                    f"{name}: {width}x{height} pixels; a radiograph of at least {MIN_SIDE}x{MIN_SIDE} is needed"
                )
            if least_side is not None:
                # Does nothing for PNG. "L" takes the luminance that the file holds instead of making colours of it.
                image.draft("L", (least_side, least_side))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image this reads (starts with {data[:8]!r}); JPEG, PNG or DICOM was expected"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more pixels than are safe to decode; scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError, OverflowError, struct.error) as error:
        raise ImageError(f"{name}: damaged image data ({error}); send the complete file") from error
    return _to_gray(image)


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
