"""DICOM files written by pydicom, for tests of what reads them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed; pip install 'pneumonia[dicom]'")

from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid  # noqa: E402

DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
NAME = "Nightingale^Florence"


def dataset(stored: np.ndarray, bits: int, **elements: Any) -> FileDataset:
    """A digital radiograph of these stored values. elements: set last, None takes one away."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = DIGITAL_XRAY, generate_uid()
    made.Modality, made.PatientName, made.PatientID = "DX", NAME, "MRN-0815"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = stored.shape[:2]
    made.BitsAllocated, made.BitsStored, made.HighBit = stored.itemsize * 8, bits, bits - 1
    made.PixelRepresentation = int(stored.dtype.kind == "i")
    made.PixelData = stored.tobytes()
    for keyword, value in elements.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def encoded(made: FileDataset) -> bytes:
    """The file's bytes."""
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dicom(stored: np.ndarray, bits: int | None = None, **elements: Any) -> bytes:
    """`dataset` as bytes; bits: stored, by default all that are allocated."""
    return encoded(dataset(stored, bits or stored.itemsize * 8, **elements))


def gradient(bits: int = 8, width: int = 96, height: int = 72, signed: bool = False) -> np.ndarray:
    """Every value of `bits` bits, in order, as far as the pixels reach."""
    low = -(1 << (bits - 1)) if signed else 0
    values = np.linspace(low, low + (1 << bits) - 1, width * height).round()
    kind = ("int" if signed else "uint") + ("8" if bits == 8 else "16")
    return values.reshape(height, width).astype(kind)


def jpeg_dicom(gray: np.ndarray, **elements: Any) -> bytes:
    """The same picture compressed as baseline JPEG, quality 95."""
    stream = io.BytesIO()
    Image.fromarray(gray).save(stream, "JPEG", quality=95)
    made = dataset(gray, 8, **elements)
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate([stream.getvalue()])
    made["PixelData"].is_undefined_length = True
    return encoded(made)
