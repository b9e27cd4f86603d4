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

from pneumonia.errors import DependencyMissing, ImageError, PneumoniaError

MODALITIES = {
    "CR": "computed radiography",
    "DX": "digital radiography",
    "RG": "digitised film",
    "OT": "secondary capture",
}
"""What may be a chest radiograph. OT only as a secondary capture, which is how exported and scanned pictures come."""
SALT_ENV = "PNEUMONIA_PATIENT_SALT"
"""Secret put before an identity that is hashed, so that nobody can find it by trying every number of a hospital."""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_IDENTITY = ("PatientID", "IssuerOfPatientID")
_ELEMENTS = (
    "SOPClassUID", "Modality", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip
_HEADERLESS = (b"\x02\x00\x00\x00", b"\x02\x00\x10\x00", b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00",
               b"\x08\x00\x16\x00", b"\x08\x00\x18\x00")  # fmt: skip
"""First elements, little-endian, of files that were written without preamble and magic."""
_PACKAGES = {"JPEG": "pylibjpeg pylibjpeg-libjpeg", "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
             "High-Throughput": "pylibjpeg pylibjpeg-openjpeg"}  # fmt: skip
_BLOCK = 1 << 20
"""Pixels looked up at a time: NumPy makes an index of 8 bytes of each."""


def is_dicom(data: bytes) -> bool:
    """Whether the bytes start as a DICOM file does, with or without its preamble of 128 bytes."""
    return data[128:132] == b"DICM" or data[:4] in _HEADERLESS


def decode_dicom(data: bytes, name: str, max_pixels: int, min_side: int) -> Image.Image:
    """Decode a radiograph to a single-channel 8-bit image, `mode == "L"`, bright where the body absorbs.

    Stored values go through the modality's rescale or LUT, the first VOI LUT or window, and the inversion of
    MONOCHROME1 (PS3.3 C.11). Without VOI LUT and window, 8 bits stay as they are and more bits are stretched from the
    least to the greatest value of the image, padding left out. Colour becomes luminance.

    Raises ImageError, which starts with `name`, for other modalities, several frames, damaged data, and compression
    without a decoder here; DependencyMissing without pydicom.
    """
    pydicom = _pydicom()
    try:
        dataset = _read(pydicom, data, _ELEMENTS, max_pixels)
        _check(dataset, name, max_pixels, min_side)
        _check_decodable(pydicom, dataset, name)
        stored = pydicom.pixels.pixel_array(dataset)
        if dataset.SamplesPerPixel == 3:
            return Image.fromarray(stored).convert("L")
        return Image.fromarray(_gray(pydicom, dataset, stored))
    except PneumoniaError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it; scale it down") from error
    except Exception as error:  # pydicom raises nearly every class there is; its text may quote an element.
        raise ImageError(f"{name}: damaged DICOM file ({type(error).__name__}); send the complete file") from error


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


def _check(dataset: Any, name: str, max_pixels: int, min_side: int) -> None:
    """Raise ImageError for what is no single radiograph of 8 to 16 bits, before any pixel is decoded."""
    modality, kind = str(dataset.get("Modality") or ""), str(dataset.get("SOPClassUID") or "")
    capture = kind.startswith(_SECONDARY_CAPTURE)
    if (modality not in MODALITIES and not (capture and not modality)) or (modality == "OT" and not capture):
        raise ImageError(
            f"{name}: DICOM modality {modality[:16] or 'unknown'}; a chest radiograph was expected: "
            f"{', '.join(f'{key} ({what})' for key, what in MODALITIES.items())}"
        )
    if "PixelData" not in dataset:
        raise ImageError(f"{name}: DICOM file without pixels; send the image itself")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{name}: DICOM file of {frames} frames; send one radiograph a file")
    height, width = int(dataset.Rows), int(dataset.Columns)
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width}x{height} pixels; at most {max_pixels:,} pixels are decoded, scale it down")
    if min(width, height) < min_side:
        raise ImageError(f"{name}: {width}x{height} pixels; a radiograph of at least {min_side}x{min_side} is needed")
    samples, kind = int(dataset.SamplesPerPixel), str(dataset.PhotometricInterpretation)
    bits = int(dataset.BitsStored)
    gray = samples == 1 and kind in ("MONOCHROME1", "MONOCHROME2") and 8 <= bits <= 16
    colour = samples == 3 and (kind == "RGB" or kind.startswith("YBR_")) and bits == 8
    if not (gray or colour):
        raise ImageError(
            f"{name}: DICOM pixels {kind[:16]} with {samples} samples of {bits} bits; expected MONOCHROME1 or "
            "MONOCHROME2 of 8 to 16 bits, or RGB of 8"
        )


def _check_decodable(pydicom: Any, dataset: Any, name: str) -> None:
    """Raise ImageError where no decoder is installed, or the compressed picture is larger than the header says."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError(f"{name}: no decoder for transfer syntax {syntax}; save it uncompressed") from error
    if not decoder.is_available:
        packages = [value for key, value in _PACKAGES.items() if syntax.name.startswith(key)][-1:]
        raise ImageError(f"{name}: no decoder for {syntax.name} here; pip install {' '.join(packages) or 'pylibjpeg'}")
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == _RLE:
        _check_rle(frame, int(dataset.Rows) * int(dataset.Columns))
        return
    try:
        picture = Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000"))
    except OSError:
        return  # JPEG-LS, which Pillow does not know; its decoder reads the size itself.
    if picture.size != (dataset.Columns, dataset.Rows):
        raise ImageError(f"{name}: damaged DICOM file (the picture inside has another size); send the complete file")


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


def _gray(pydicom: Any, dataset: Any, stored: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """Stored values (Rows, Columns), 8 to 16 bits -> uint8, by a table of what each possible value becomes."""
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    low = -(1 << (bits - 1)) if signed else 0
    values = np.arange(low, low + (1 << bits), dtype=np.int32)
    modality = np.asarray(pydicom.pixels.apply_modality_lut(values, dataset))
    if modality.dtype.kind == "f" and (modality == np.rint(modality)).all():
        modality = modality.astype(np.int32)  # A VOI LUT wants integers.
    shown = np.asarray(pydicom.pixels.apply_voi_lut(modality, dataset), np.float64)
    dark, bright = _range(dataset, stored, modality, shown, bits, low)
    share = (shown - dark) / ((bright - dark) or 1.0)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    table = np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)
    flat, out = stored.reshape(-1), np.empty(stored.size, np.uint8)
    for start in range(0, flat.size, _BLOCK):
        index = flat[start : start + _BLOCK].astype(np.int32) - low
        np.take(table, index, mode="clip", out=out[start : start + _BLOCK])
    return out.reshape(stored.shape)


def _range(
    dataset: Any, stored: npt.NDArray[Any], modality: npt.NDArray[Any], shown: npt.NDArray[Any], bits: int, low: int
) -> tuple[float, float]:
    """The output values that are black and white."""
    if dataset.get("VOILUTSequence"):
        return 0.0, float((1 << int(dataset.VOILUTSequence[0].LUTDescriptor[2])) - 1)
    windowed = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    if windowed or bits == 8:
        if dataset.get("ModalityLUTSequence"):
            return 0.0, float((1 << int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])) - 1)
        ends = float(modality[0]), float(modality[-1])
        return ends if windowed else (min(ends), max(ends))
    padding = dataset.get("PixelPaddingValue")
    inside = stored != padding if padding is not None and (stored != padding).any() else np.True_
    least = int(np.min(stored, where=inside, initial=np.iinfo(stored.dtype).max)) - low
    greatest = int(np.max(stored, where=inside, initial=np.iinfo(stored.dtype).min)) - low
    present = shown[max(least, 0) : greatest + 1]
    return float(present.min()), float(present.max())
