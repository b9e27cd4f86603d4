"""Which images belong to one patient, and to which subgroup."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from pneumonia.errors import ConfigError, DataError
from pneumonia.files import printable

# Both families of names in the Kaggle set. The bare number is the patient: person12_bacteria_3 and person12_virus_9
# are one group, IM-0115-0001 and NORMAL2-IM-0115-0001 too. Some of them may be two children; merging more than is
# needed leaks nothing. The families count separately: person12 has pneumonia, IM-0012 is another, healthy child.
_PERSON = re.compile(r"^person0*(\d+)_", re.IGNORECASE)
_IM = re.compile(r"^(?:NORMAL\d*-)?IM-0*(\d+)", re.IGNORECASE)
_GROUPS = (
    (re.compile(r"^person\d+_bacteria_", re.IGNORECASE), "bacteria"),
    (re.compile(r"^person\d+_virus_", re.IGNORECASE), "virus"),
    (re.compile(r"^NORMAL2-IM-", re.IGNORECASE), "NORMAL2"),
    (re.compile(r"^IM-", re.IGNORECASE), "IM"),
)
OTHER = "other"
WAYS_OUT = (
    "if that is wrong, give data.patient_regex= whose first group is the patient, or a labels.csv with patient_id, or "
    "accept figures that may be too good with data.patients=unknown"
)

_EXPORTED = "names such as IM-0001-0001 count the series and images of an export and name no patient; "

NAMED, UNKNOWN = "named", "unknown"
FROM_TABLE, FROM_REGEX, FROM_NAMES, FROM_DICOM = "labels.csv", "data.patient_regex", "file names", "PatientID"
"""Where patient keys come from."""


def patient_of(name: str) -> str | None:
    """The patient key that a file name of the Kaggle set carries, or None where it carries none.

    >>> patient_of("person12_virus_9.jpeg"), patient_of("NORMAL2-IM-0115-0001.jpeg")
    ('person12', 'IM115')
    """
    if found := _PERSON.match(name):
        return f"person{found.group(1)}"
    if found := _IM.match(name):
        return f"IM{found.group(1)}"
    return None


def group_of(name: str) -> str:
    """The subgroup that a file name tells: bacteria, virus, NORMAL2, IM or other."""
    return next((group for pattern, group in _GROUPS if pattern.search(name)), OTHER)


def patient_keys(
    paths: Sequence[str],
    given: Sequence[str | None],
    mode: str,
    regex: str | None,
    dicom: Callable[[], Sequence[str | None]] = tuple,
) -> tuple[list[str], str]:
    """Patient key by image, and where the keys come from: one of FROM_..., or UNKNOWN.

    paths: of the images; the file name counts, and for the regex the folders where the name has none.
    given: patient_id by image where labels.csv has it. mode: data.patients. regex: its first group
    is the patient. dicom: reads the hashed PatientID of each image. Of regex, labels.csv, PatientID and the names of
    the Kaggle set the first that there is gives every key, because one patient could have two from two places. Raises
    DataError, listing examples, where an image has no key and the user did not say data.patients=unknown: images of one
    patient on both sides of a split would make every figure too good.
    """
    names = [PurePosixPath(path).name for path in paths]
    if mode == UNKNOWN:
        return [f"image{position}" for position in range(len(names))], UNKNOWN
    if regex is not None:
        pattern = _compile(regex)
        origin, keys = FROM_REGEX, [_first_group(pattern, name) for name in paths]
    elif any(given):
        origin, keys = FROM_TABLE, list(given)
    elif any(hashed := dicom()):
        origin, keys = FROM_DICOM, list(hashed)
    else:
        origin, keys = FROM_NAMES, _from_names(names)
    missing = [name for name, key in zip(names, keys, strict=True) if not key]
    if missing:
        exported = origin == FROM_NAMES and all(map(_IM.match, missing))
        raise DataError(
            f"{len(missing)} of {len(names)} images have no patient by {origin}, such as "
            f"{', '.join(map(printable, missing[:3]))}; {_EXPORTED if exported else ''}"
            "give data.patient_regex= whose first group is the patient, or a labels.csv with patient_id, or accept "
            "figures that may be too good with data.patients=unknown"
        )
    if origin == FROM_DICOM and len(keys) > 1 and len(set(keys)) == 1:
        raise DataError(
            f"all {len(keys)} images have one patient by {origin}, as after an anonymisation that gives every patient "
            f"one number; {WAYS_OUT}"
        )
    return [str(key) for key in keys], origin


def _from_names(names: Sequence[str]) -> list[str | None]:
    """The keys of the Kaggle set's names, of which both families are there. IM-0001-0001 alone is what OsiriX and Horos
    call the files of an export, by series and image."""
    if not any(map(_PERSON.match, names)):
        return [None if re.match(r"IM-", name, re.IGNORECASE) else patient_of(name) for name in names]
    return [patient_of(name) for name in names]


def _compile(regex: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ConfigError(f"data.patient_regex={regex}: not a regular expression ({error})") from error
    if pattern.groups < 1:
        raise ConfigError(f"data.patient_regex={regex}: has no group; put the patient's part in parentheses")
    return pattern


def _first_group(pattern: re.Pattern[str], name: str) -> str | None:
    found = pattern.search(PurePosixPath(name).name) or pattern.search(name)
    return found.group(1) if found else None


def join_patients(keys: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """`keys` with the patients of every pair made one, under the first of their names.

    pairs: keys of two patients who own the same image, byte for byte, and so are one patient under two names.
    """
    joined: dict[str, str] = {}

    def root(key: str) -> str:
        while key in joined:
            key = joined[key]
        return key

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        if first != second:
            joined[second] = first
    return [root(key) for key in keys]
