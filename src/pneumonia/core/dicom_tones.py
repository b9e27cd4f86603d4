"""Stored values of a DICOM image to grey levels: rescale, lookup tables, windows (PS3.3 C.11)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumonia.core.dicom_header import text_of
from pneumonia.errors import ImageError

_BLOCK = 1 << 20
"""Pixels looked up at a time: NumPy makes an index of 8 bytes of each."""
_MARKER_SHARE = 0.005
"""Of the pixels, at either end of the values: what a marker of lead or a broken pixel may have."""
_STRAY = 4
"""How much wider than the values of all other pixels a few may make the range before they do not count."""
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class Table:
    """A lookup table. first: the input of the first entry. bits: what the descriptor says that entries have."""

    first: int
    bits: int
    entries: npt.NDArray[np.uint16]

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """The entry of each value; values beyond the table's ends have those ends'."""
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        found: npt.NDArray[np.uint16] = self.entries[index]
        return found


def gray(pydicom: Any, dataset: Any, stored: npt.NDArray[np.integer[Any]], name: str) -> npt.NDArray[np.uint8]:
    """Stored values (Rows, Columns), 8 to 16 bits -> uint8, by a table of what each possible value becomes.

    Elements for display that are empty or invalid are as if they were not there; raises ImageError, naming the element,
    where nothing says how to show the image without them.
    """
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    low = -(1 << (bits - 1)) if signed else 0
    values = np.arange(low, low + (1 << bits), dtype=np.int32)
    modality, to_modality = _modality(dataset, values, name)
    shown, ends = _shown(pydicom, dataset, modality, to_modality, name, stored, low)
    dark, bright = ends or _range(dataset, stored, modality, bits, low)
    share = (shown - dark) / ((bright - dark) or 1.0)
    if text_of(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        share = 1 - share
    table = np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)
    flat, out = stored.reshape(-1), np.empty(stored.size, np.uint8)
    for start in range(0, flat.size, _BLOCK):
        index = flat[start : start + _BLOCK].astype(np.int32) - low
        np.take(table, index, mode="clip", out=out[start : start + _BLOCK])
    return out.reshape(stored.shape)


def _numbers(dataset: Any, keyword: str) -> list[float]:
    """The finite numbers of an element, NaN for what is none of them; [] where it is missing or empty."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts when it is asked.
        return [math.nan]
    if value is None or value == "":
        return []
    found = []
    for one in value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]:
        try:
            number = float(one)
        except (TypeError, ValueError):
            number = math.nan
        found.append(number if math.isfinite(number) else math.nan)
    return found


def _modality(dataset: Any, values: npt.NDArray[np.int32], name: str) -> tuple[npt.NDArray[Any], Table | None]:
    """What the detector measured by stored value, and the table that says so where there is one."""
    if dataset.get("ModalityLUTSequence"):
        table = _table(dataset, "ModalityLUTSequence")
        if table is None:
            raise ImageError(f"{name}: DICOM ModalityLUTSequence contradicts itself; send the file as it was made")
        return table(values).astype(np.int32), table
    slope, intercept = _numbers(dataset, "RescaleSlope"), _numbers(dataset, "RescaleIntercept")
    for keyword, numbers in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if any(map(math.isnan, numbers)) or (keyword == "RescaleSlope" and numbers[:1] == [0.0]):
            raise ImageError(f"{name}: DICOM element {keyword} is no usable number; send the file as it was made")
    if not slope and not intercept:
        for keyword in ("RescaleSlope", "RescaleIntercept"):
            if keyword in dataset:
                delattr(dataset, keyword)
        return values, None
    dataset.RescaleSlope, dataset.RescaleIntercept = (slope or [1.0])[0], (intercept or [0.0])[0]
    modality = values.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    whole = bool((modality == np.rint(modality)).all())
    return modality.astype(np.int32) if whole and np.abs(modality).max() < 1 << 30 else modality, None


def _table(dataset: Any, keyword: str) -> Table | None:
    """The first table of a sequence; None where it contradicts itself."""
    try:
        item = dataset[keyword].value[0]
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        raw = item.LUTData
        if isinstance(raw, bytes):
            order = "<" if dataset.original_encoding[1] is not False else ">"
            words = np.frombuffer(raw[: len(raw) // 2 * 2], f"{order}u2")
        else:
            words = np.asarray(
                [int(value) & 0xFFFF for value in (raw if hasattr(raw, "__len__") else [raw])], np.uint16
            )
    except Exception:  # pydicom converts when it is asked.
        return None
    count = (count & 0xFFFF) or 1 << 16
    if bits <= 8 and len(words) == (count + 1) // 2 and count > 1:
        # Two entries of 8 bits a word, the first in the lower byte.
        words = words.astype("<u2").view(np.uint8).astype(np.uint16)[:count]
    if not 8 <= bits <= 16 or len(words) != count or count < 2:
        return None
    signed = first > 0x7FFF and int(dataset.PixelRepresentation) == 1
    return Table(first - 0x10000 if signed else first, bits, words.astype(np.uint16))


def _window(dataset: Any) -> bool:
    """Make the first usable window the only one, in place; without one there is none."""
    function = text_of(dataset, "VOILUTFunction").replace(" ", "_")
    if function not in _FUNCTIONS:
        function = "LINEAR"
    pairs = zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth"), strict=False)
    usable = next(((center, width) for center, width in pairs if not math.isnan(center) and width > 0), None)
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if keyword in dataset:
            delattr(dataset, keyword)
    if usable is None:
        return False
    # Widths below 1 are of measurements below 1, where LINEAR has no meaning.
    dataset.VOILUTFunction = "LINEAR_EXACT" if function == "LINEAR" and usable[1] < 1 else function
    dataset.WindowCenter, dataset.WindowWidth = usable
    return True


def _shown(
    pydicom: Any,
    dataset: Any,
    modality: npt.NDArray[Any],
    to_modality: Table | None,
    name: str,
    stored: npt.NDArray[Any],
    low: int,
) -> tuple[npt.NDArray[np.float64], tuple[float, float] | None]:
    """What a viewer shows by stored value, and the output values that are black and white where the header says."""
    windowed = _window(dataset)
    if dataset.get("VOILUTSequence"):
        table = _table(dataset, "VOILUTSequence")
        if table is not None:
            _check_covers(table, modality[np.clip(stored[::7, ::7].astype(np.int32) - low, 0, None)], name)
            # Tables of fewer bits than they say are usual, and entries of more happen.
            white = (1 << int(table.entries.max()).bit_length()) - 1
            return table(modality).astype(np.float64), (0.0, float(white))
        if not windowed:
            raise ImageError(
                f"{name}: DICOM VOILUTSequence contradicts itself, and there is no window beside it; send the file as "
                "it was made"
            )
    if windowed:
        if to_modality is not None:
            dataset.ModalityLUTSequence[0].LUTDescriptor = [
                len(to_modality.entries),
                to_modality.first,
                to_modality.bits,
            ]
        shown = np.asarray(pydicom.pixels.apply_windowing(modality, dataset), np.float64)
        if to_modality is not None:
            return shown, (0.0, float((1 << to_modality.bits) - 1))
        return shown, (float(modality[0]), float(modality[-1]))
    return np.asarray(modality, np.float64), None


def _check_covers(table: Table, present: npt.NDArray[Any], name: str) -> None:
    """A table for other values than the image has would show most of it as one grey."""
    inside = (present >= table.first) & (present < table.first + len(table.entries))
    if inside.mean() < 0.5:
        raise ImageError(
            f"{name}: DICOM VOILUTSequence is for values of {table.first} to {table.first + len(table.entries) - 1}, "
            f"and most pixels have others ({present.min():g} to {present.max():g}); send the file as it was made"
        )


def _range(
    dataset: Any, stored: npt.NDArray[Any], modality: npt.NDArray[Any], bits: int, low: int
) -> tuple[float, float]:
    """The values that are black and white where the header says nothing."""
    if bits == 8:
        if dataset.get("ModalityLUTSequence"):
            return 0.0, float((1 << int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])) - 1)
        ends = float(modality[0]), float(modality[-1])
        return min(ends), max(ends)
    counts = np.bincount(np.clip(stored.reshape(-1).astype(np.int32) - low, 0, len(modality) - 1), minlength=1)
    padding = [int(value) - low for value in _numbers(dataset, "PixelPaddingValue")[:1] if not math.isnan(value)]
    for value in padding:
        if 0 <= value < len(counts) and 0 < counts[value] < stored.size:
            counts[value] = 0
    least, greatest = _without_markers(counts)
    present = modality[least : greatest + 1]
    return float(present.min()), float(present.max())


def _without_markers(counts: npt.NDArray[np.int64]) -> tuple[int, int]:
    """The least and the greatest value by how often each occurs, without those few that lie far from all others."""
    there = np.flatnonzero(counts)
    least, greatest = int(there[0]), int(there[-1])
    below = np.cumsum(counts)
    dark, bright = np.searchsorted(below, (_MARKER_SHARE * below[-1], (1 - _MARKER_SHARE) * below[-1]))
    width = int(bright - dark)
    if width > 0 and greatest - least > _STRAY * width:
        # Half the width more at either end keeps what belongs to the picture.
        inside = there[(there >= dark - width // 2) & (there <= bright + width // 2)]
        return int(inside[0]), int(inside[-1])
    return least, greatest
