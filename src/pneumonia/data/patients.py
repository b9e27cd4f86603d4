"""Which images belong to one patient, and to which subgroup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pneumonia.errors import ConfigError, DataError

# Both families of the Kaggle set. The bare number is the patient: person12_bacteria_3 and person12_virus_9 are one
# child, IM-0115-0001 and NORMAL2-IM-0115-0001 too as far as a name can tell; merging more than needed leaks nothing.
_PERSON = re.compile(r"person0*(\d+)_")
_IM = re.compile(r"IM-0*(\d+)")
_GROUPS = (
    (re.compile(r"_bacteria_"), "bacteria"),
    (re.compile(r"_virus_"), "virus"),
    (re.compile(r"^NORMAL2-"), "NORMAL2"),
    (re.compile(r"^IM-"), "IM"),
)
OTHER = "other"


def patient_of(name: str) -> str | None:
    """The patient key that a file name of the Kaggle set carries, or None where it carries none.

    >>> patient_of("person12_virus_9.jpeg"), patient_of("NORMAL2-IM-0115-0001.jpeg")
    ('person12', 'IM115')
    """
    if found := _PERSON.match(name):
        return f"person{found.group(1)}"
    if found := _IM.search(name):
        return f"IM{found.group(1)}"
    return None


def group_of(name: str) -> str:
    """The subgroup that a file name tells: bacteria, virus, NORMAL2, IM or other."""
    return next((group for pattern, group in _GROUPS if pattern.search(name)), OTHER)


def patient_keys(
    names: Sequence[str], given: Sequence[str | None], mode: str, regex: str | None
) -> tuple[list[str], str]:
    """Patient key by image, and "named" or "unknown".

    names: file names. given: patient_id by image where labels.csv has it. mode: data.patients. regex: its first group
    is the patient. Raises DataError, listing examples, where an image has no key and the user did not say
    data.patients=unknown: images of one patient on both sides of a split would make every figure too good.
    """
    if mode == "unknown":
        return [f"image{position}" for position in range(len(names))], "unknown"
    pattern = _compile(regex) if regex is not None else None
    keys = [known or _search(pattern, name) for name, known in zip(names, given, strict=True)]
    missing = [name for name, key in zip(names, keys, strict=True) if key is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images have no patient, such as {', '.join(missing[:3])}; give "
            "data.patient_regex= with one group, or a labels.csv with patient_id, or accept figures that may be too "
            "good with data.patients=unknown"
        )
    return [str(key) for key in keys], "named"


def _compile(regex: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ConfigError(f"data.patient_regex={regex}: not a regular expression ({error})") from error
    if pattern.groups < 1:
        raise ConfigError(f"data.patient_regex={regex}: has no group; put the patient's part in parentheses")
    return pattern


def _search(pattern: re.Pattern[str] | None, name: str) -> str | None:
    if pattern is None:
        return patient_of(name)
    found = pattern.search(name)
    return found.group(1) if found else None
