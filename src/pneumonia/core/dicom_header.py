"""What a DICOM header says the image is: whether it may be a chest seen from the front, and how its pixels lie."""

from __future__ import annotations

import re
from typing import Any

from pneumonia.errors import ImageError

MODALITIES = {
    "CR": "computed radiography",
    "DX": "digital radiography",
    "RG": "digitised film",
    "OT": "secondary capture",
}
"""What may be a chest radiograph. OT only as a secondary capture, which is how exported and scanned pictures come."""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_RADIOGRAPHS = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1")
_FOR_PROCESSING = ("1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.840.10008.5.1.4.1.1.1.3.1")
_CHEST = re.compile(r"CHEST|THORA|TORAX|LUNG|PULMO|CXR|RIB")
_SPINE = re.compile(r"SPINE|VERTEBR")
_OTHER_PART = re.compile(
    r"ABDOM|ANKLE|\bARM\b|ARMS\b|BACK\b|BLADDER|BREAST|CALC[AI]N|CALF|CAROTID|CLAVIC|COCCYX|COLON|CRANI|EAR\b|ELBOW"
    r"|EXTREMIT|EYE|FACE|FACIAL|FEMUR|FEMOR|FIBUL|FINGER|FOOT|FEET|FOREARM|GALLBLADDER|HAND|HEAD|HEEL|\bHIPS?\b|HUMER"
    r"|JAW|KIDNEY|KNEE|\bLEGS?\b|LEG$|LIMB|MANDIB|MAXILL|NECK|NOSE|NASAL|ORBIT|PATELL|PELVI|RADIUS|SACRUM|SACRO|SCAPUL"
    r"|SCROT|SELLA|SHOULDER|SINUS|SKULL|STOMACH|TARS|TEETH|TOOTH|DENTAL|THIGH|THUMB|TIBIA|TOE|ULNA|URETER|UTERUS|WRIST"
)
"""Parts of the body by the defined terms of PS3.16 annex L and the names that are usual for them. What is none of these
passes: the element is free text in many hospitals."""
_LATERAL = re.compile(r"LATERAL|OBLI|\b(LL|RL|LAT|LLAT|RLAT|LATL|LATR|LLO|RLO|LAO|RAO|LPO|RPO)\b")
_DECUBITUS = re.compile(r"DECUB")
_NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")


def text_of(dataset: Any, keyword: str) -> str:
    """An element's text in capitals; "" where it is missing, empty or cannot be read."""
    try:
        value = dataset.get(keyword)
        return str(value).strip().upper() if value is not None else ""
    except Exception:  # pydicom reads an element when it is asked for, and raises nearly every class there is.
        return ""


def _meanings(dataset: Any, keyword: str) -> str:
    """The words of a sequence of codes."""
    try:
        return " ".join(text_of(item, "CodeMeaning") for item in dataset.get(keyword) or ())
    except Exception:
        return ""


def settle(dataset: Any, name: str) -> None:
    """Give the elements that say how pixels lie their whole numbers, in place. Raises ImageError naming a bad one."""
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise ImageError(f"{name}: DICOM file of floating-point pixels, which are not read; save it with integers")
        raise ImageError(f"{name}: DICOM file without pixels; send the image itself")
    if not text_of(dataset, "PhotometricInterpretation"):
        raise ImageError(f"{name}: DICOM element PhotometricInterpretation is missing; send the file as it was made")
    for keyword in _NEEDED:
        setattr(dataset, keyword, _whole(dataset, keyword, name))
    colour = not text_of(dataset, "PhotometricInterpretation").startswith(("MONOCHROME", "PALETTE"))
    dataset.SamplesPerPixel = _whole(dataset, "SamplesPerPixel", name, 3 if colour else 1)
    dataset.HighBit = _whole(dataset, "HighBit", name, dataset.BitsStored - 1)
    frames = _whole(dataset, "NumberOfFrames", name, 1)
    if frames not in (0, 1):
        raise ImageError(f"{name}: DICOM file of {frames} frames; send one radiograph a file")
    if "NumberOfFrames" in dataset:
        del dataset.NumberOfFrames
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = _whole(dataset, "PlanarConfiguration", name)


def _whole(dataset: Any, keyword: str, name: str, default: int | None = None) -> int:
    if keyword not in dataset and default is None:
        raise ImageError(f"{name}: DICOM element {keyword} is missing; send the file as it was made")
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            if default is not None:
                return default
            raise ImageError(f"{name}: DICOM element {keyword} is empty; send the file as it was made")
        return int(value)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: DICOM element {keyword} is no whole number; send the file as it was made") from error


def check_chest(dataset: Any, name: str) -> None:
    """Raise ImageError where the header says that this is no radiograph of a chest from the front, ready to be shown.

    What is missing or empty says nothing.
    """
    modality = text_of(dataset, "Modality")
    kind = text_of(dataset, "SOPClassUID") or text_of(dataset.file_meta, "MediaStorageSOPClassUID")
    capture = kind.startswith(_SECONDARY_CAPTURE)
    known = modality in MODALITIES if modality else (capture or kind in _RADIOGRAPHS)
    if not known or (modality == "OT" and not capture):
        raise ImageError(
            f"{name}: DICOM modality {modality[:16] or 'unknown'}; a chest radiograph was expected: "
            f"{', '.join(f'{key} ({what})' for key, what in MODALITIES.items())}"
        )
    if kind in _FOR_PROCESSING or text_of(dataset, "PresentationIntentType") == "FOR PROCESSING":
        raise ImageError(
            f"{name}: raw values of a detector (FOR PROCESSING), which no viewer shows as they are; send the image FOR "
            "PRESENTATION of the same exposure"
        )
    _check_part(dataset, name)
    _check_view(dataset, name)


def _check_part(dataset: Any, name: str) -> None:
    for keyword, said in (
        ("BodyPartExamined", text_of(dataset, "BodyPartExamined")),
        ("AnatomicRegionSequence", _meanings(dataset, "AnatomicRegionSequence")),
    ):
        words = re.sub(r"[^A-Z]+", " ", said).strip()
        spine = _SPINE.search(words)
        if spine or (_OTHER_PART.search(words) and not _CHEST.search(words)):
            raise ImageError(f"{name}: DICOM {keyword} is {words[:32]}; a radiograph of a chest was expected")


def _check_view(dataset: Any, name: str) -> None:
    for keyword, said in (
        ("ViewPosition", text_of(dataset, "ViewPosition")),
        ("ViewCodeSequence", _meanings(dataset, "ViewCodeSequence")),
    ):
        words = re.sub(r"[^A-Z]+", " ", said).strip()
        if _LATERAL.search(words) and not _DECUBITUS.search(words):
            raise ImageError(f"{name}: DICOM {keyword} is {words[:32]}; a frontal view, PA or AP, was expected")
    try:
        rows = str((dataset.get("PatientOrientation") or [""])[0]).strip().upper()
    except Exception:
        return
    if rows in ("A", "P"):
        raise ImageError(
            f"{name}: DICOM PatientOrientation has rows that run to {rows}, as in a lateral view; a frontal view, "
            "PA or AP, was expected"
        )


def check_pixels(dataset: Any, name: str, max_pixels: int, min_side: int) -> None:
    """Raise ImageError for what is no single picture of 8 to 16 bits, before any pixel is decoded."""
    height, width = dataset.Rows, dataset.Columns
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width}x{height} pixels; at most {max_pixels:,} pixels are decoded, scale it down")
    if min(width, height) < min_side:
        raise ImageError(f"{name}: {width}x{height} pixels; a radiograph of at least {min_side}x{min_side} is needed")
    samples, kind, bits = dataset.SamplesPerPixel, text_of(dataset, "PhotometricInterpretation"), dataset.BitsStored
    gray = samples == 1 and kind in ("MONOCHROME1", "MONOCHROME2") and 8 <= bits <= 16
    colour = samples == 3 and (kind == "RGB" or kind.startswith("YBR_")) and bits == 8
    if not (gray or colour):
        raise ImageError(
            f"{name}: DICOM pixels {kind[:16]} with {samples} samples of {bits} bits; expected MONOCHROME1 or "
            "MONOCHROME2 of 8 to 16 bits, or RGB of 8"
        )
    allocated, high = dataset.BitsAllocated, dataset.HighBit
    if allocated not in (8, 16, 32) or not bits - 1 <= high < allocated:
        raise ImageError(
            f"{name}: DICOM elements BitsAllocated {allocated}, BitsStored {bits} and HighBit {high} contradict each "
            "other; send the file as it was made"
        )
    _check_length(dataset, name)


def _check_length(dataset: Any, name: str) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        if dataset.HighBit != dataset.BitsStored - 1 and not syntax.endswith("1.2.5"):
            raise ImageError(
                f"{name}: DICOM element HighBit is {dataset.HighBit} for BitsStored {dataset.BitsStored} in compressed "
                "pixels, where it has no meaning; save it uncompressed"
            )
        return
    held, samples = len(dataset.PixelData), dataset.SamplesPerPixel
    if text_of(dataset, "PhotometricInterpretation").startswith("YBR_FULL_422"):
        return  # Fewer samples of colour than pixels.
    needed = dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated // 8
    if held < needed:
        raise ImageError(
            f"{name}: damaged DICOM file (PixelData has {held:,} bytes, Rows and Columns need {needed:,}); send the "
            "complete file"
        )
