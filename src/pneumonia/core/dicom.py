"""DICOM bytes in, one channel of pixels out; and the patient's identity, hashed.

Nothing that names a patient leaves this module: only the elements of _ELEMENTS are parsed, what pydicom says about
odd values is silenced because it quotes them, and messages of errors name none.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import logging
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumonia.core.dicom_header import check_chest, check_pixels, settle
from pneumonia.core.dicom_tones import gray
from pneumonia.core.envelope import check_scans, jpeg_kind
from pneumonia.errors import DependencyMissing, ImageError, PneumoniaError

SALT_ENV = "PNEUMONIA_PATIENT_SALT"
"""Secret put before an identity that is hashed, so that nobody can find it by trying every number of a hospital."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_IDENTITY = ("PatientID", "IssuerOfPatientID")
_ELEMENTS = (
    "SOPClassUID", "Modality", "PresentationIntentType", "BodyPartExamined", "AnatomicRegionSequence", "ViewPosition",
    "ViewCodeSequence", "PatientOrientation", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "FloatPixelData", "DoubleFloatPixelData", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)  # fmt: skip
_HEADERLESS = (b"\x02\x00\x00\x00", b"\x02\x00\x01\x00", b"\x02\x00\x02\x00", b"\x02\x00\x10\x00",
               b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00",
               b"\x08\x00\x16\x00", b"\x08\x00\x18\x00")  # fmt: skip
"""First elements, little-endian, of files that were written without preamble and magic."""
_PACKAGES = {"JPEG": "pylibjpeg pylibjpeg-libjpeg", "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
             "High-Throughput": "pylibjpeg pylibjpeg-openjpeg"}  # fmt: skip


def is_dicom(data: bytes) -> bool:
    """Whether the bytes start as a DICOM file does, with or without its preamble of 128 bytes."""
    return data[128:132] == b"DICM" or data[:4] in _HEADERLESS


def decode_dicom(data: bytes, name: str, max_pixels: int, min_side: int) -> Image.Image:
    """Decode a radiograph to a single-channel 8-bit image, `mode == "L"`, bright where the body absorbs.

    Stored values go through the modality's rescale or LUT, the first VOI LUT or window that can be used, and the
    inversion of MONOCHROME1 (PS3.3 C.11). Without VOI LUT and window, 8 bits stay as they are and more bits are
    stretched from the least to the greatest value of the image, padding and single markers left out. Colour becomes
    luminance.

    Raises ImageError, which starts with `name` and names the element that is wrong, for other modalities, other parts
    of the body, lateral views, raw detector images, several frames and damaged data; DependencyMissing without pydicom
    and for compression without a decoder here.
    """
    pydicom = _pydicom()
    try:
        dataset = _read(pydicom, data, _ELEMENTS, max_pixels)
        settle(dataset, name)
        check_chest(dataset, name)
        check_pixels(dataset, name, max_pixels, min_side)
        _check_decodable(pydicom, dataset, name)
        stored = _stored(pydicom, dataset, name)
        if dataset.SamplesPerPixel == 3:
            return Image.fromarray(stored).convert("L")
        return Image.fromarray(gray(pydicom, dataset, stored, name))
    except PneumoniaError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it; scale it down") from error
    except Exception as error:  # pydicom raises nearly every class there is; its text may quote an element.
        raise ImageError(
            f"{name}: damaged DICOM file ({type(error).__name__}); send the file as the archive has it"
        ) from error


def _stored(pydicom: Any, dataset: Any, name: str) -> npt.NDArray[np.integer[Any]]:
    """The stored values (Rows, Columns), or (Rows, Columns, 3), whichever bits of their words they lie in."""
    bits, above = dataset.BitsStored, dataset.HighBit + 1
    try:
        # What lies below the value is decoded as a part of it, because pydicom cuts off what lies above.
        dataset.BitsStored = above
        values: npt.NDArray[np.integer[Any]] = pydicom.pixels.pixel_array(dataset)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(
            f"{name}: damaged DICOM file (PixelData cannot be decoded: {type(error).__name__}); send the file as the "
            "archive has it"
        ) from error
    finally:
        dataset.BitsStored = bits
    return values >> (above - bits) if above > bits else values


def patient_key(path: Path) -> str | None:
    """First 16 hex digits of SHA-256(salt, IssuerOfPatientID, PatientID) of a file; None where it has no PatientID.

    The salt is $PNEUMONIA_PATIENT_SALT, by default empty. None too for a file that is no DICOM file or is damaged:
    whoever decodes it will say so. Raises DependencyMissing without pydicom.
    """
    try:
        with path.open("rb") as stream:
            if not is_dicom(stream.read(132)):
                return None
            pydicom = _pydicom()
            stream.seek(0)
            tags = [pydicom.tag.Tag(keyword) for keyword in _IDENTITY]
            dataset = pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=tags)
            patient, issuer = (str(dataset.get(keyword) or "").strip() for keyword in _IDENTITY)
    except PneumoniaError:
        raise
    except Exception:
        return None
    if not patient:
        return None
    return hashed_identity(patient, issuer)


def hashed_identity(patient: str, issuer: str = "") -> str:
    """First 16 hex digits of SHA-256(salt, issuer, patient); the salt is $PNEUMONIA_PATIENT_SALT, by default empty."""
    parts = (os.environ.get(SALT_ENV, ""), issuer, patient)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@functools.cache
def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise DependencyMissing(
            "this is a DICOM file, and reading it needs pydicom: pip install 'pneumonia[dicom]'"
        ) from error
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


def _read(pydicom: Any, data: bytes, keywords: tuple[str, ...], max_pixels: int) -> Any:
    """The dataset with the elements of `keywords` alone."""
    stream = io.BytesIO(data)
    if data[128:132] == b"DICM":
        stream.seek(132)
        meta = pydicom.filereader._read_file_meta_info(stream)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            _check_deflated(data[stream.tell() :], 8 * max_pixels)
        stream.seek(0)
    tags = [pydicom.tag.Tag(keyword) for keyword in keywords]
    dataset = pydicom.dcmread(stream, force=True, specific_tags=tags)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        syntaxes = {(True, True): "1.2.840.10008.1.2", (False, True): "1.2.840.10008.1.2.1"}
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntaxes[implicit, little])
    return dataset


def _check_deflated(zipped: bytes, most: int) -> None:
    """pydicom inflates without a limit, and a few kilobytes can hold gigabytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    while zipped and not inflater.eof:
        size += len(inflater.decompress(zipped, 1 << 20))
        zipped = inflater.unconsumed_tail
        if size > most:
            raise ValueError("inflates without end")


def _check_decodable(pydicom: Any, dataset: Any, name: str) -> None:
    """Raise ImageError where no decoder is installed, or the compressed picture is larger than the header says."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError(f"{name}: no decoder for transfer syntax {syntax}; save it uncompressed") from error
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    # Pillow says that it decodes JPEG Extended, and does so for 8 bits alone.
    alone = decoder.is_available and list(decoder.available_plugins) == ["pillow"]
    if not decoder.is_available or (alone and jpeg_kind(frame)):
        packages = [value for key, value in _PACKAGES.items() if syntax.name.startswith(key)][-1:]
        raise DependencyMissing(
            f"{name}: no decoder for {syntax.name} here; pip install {' '.join(packages) or 'pylibjpeg'}"
        )
    if syntax == _RLE:
        _check_rle(frame, dataset.Rows * dataset.Columns)
        return
    check_scans(frame, name, dataset.Rows * dataset.Columns)
    try:
        picture = Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000"))
    except OSError:
        return  # JPEG-LS, which Pillow does not know; its decoder reads the size itself.
    if picture.size != (dataset.Columns, dataset.Rows):
        raise ImageError(
            f"{name}: damaged DICOM file (the picture inside is {picture.width}x{picture.height}, Columns and Rows say "
            f"{dataset.Columns}x{dataset.Rows}); send the file as the archive has it"
        )


def _check_rle(frame: bytes, most: int) -> None:
    """pydicom decodes run lengths without a limit: raise ValueError where a segment is more than a byte a pixel."""
    offsets = [int.from_bytes(frame[at : at + 4], "little") for at in range(0, 64, 4)]
    for at, end in itertools.pairwise([*offsets[1 : 1 + offsets[0]], len(frame)]):
        length = 0
        while at < end and length <= most + 1:
            head = frame[at]
            run = head > 128
            length += 257 - head if run else (head + 1 if head < 128 else 0)
            at += 2 if run else (head + 2 if head < 128 else 1)
        if length > most + 1:  # Segments are padded to an even length.
            raise ValueError("a segment is longer than the picture")
