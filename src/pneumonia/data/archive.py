"""Zip archives of labelled images, taken out under their part and class and nowhere else."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pneumonia import contract
from pneumonia.core.listing import SUFFIXES
from pneumonia.errors import DataError

_ROOM = 64 << 20
"""Bytes that any archive may unpack to, beside twenty times its size: images hardly shrink in an archive."""


def extract_images(archive: Path, out: Path) -> None:
    """Write every image of `archive` to out/<part>/<CLASS>/<name>.

    Only a member's last three names count, so folders around them, and the whole set a second time in a folder of the
    same name, do no harm. Left out: __MACOSX, names that start with a dot, and what is no image. Raises DataError,
    before anything is written, for an archive with a link, an absolute path or a path that leaves its folder, and for
    two different images of one name; and where the archive is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for target, member in _choose(archive, opened.infolist()).items():
                path = out.joinpath(*target)
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{archive.name}: a damaged archive ({error})") from error


def _choose(archive: Path, members: list[zipfile.ZipInfo]) -> dict[tuple[str, str, str], zipfile.ZipInfo]:
    """The members to take out, by part, class and name."""
    size, limit = sum(member.file_size for member in members), 20 * archive.stat().st_size + _ROOM
    if size > limit:
        raise DataError(
            f"{archive.name}: unpacks to {size:,} bytes, which images of so small an archive do not; nothing of it was "
            "used"
        )
    for member in members:
        if reason := _leaves(member):
            raise DataError(f"{archive.name}: member {member.filename!r} {reason}; nothing of the archive was used")
    chosen: dict[tuple[str, str, str], zipfile.ZipInfo] = {}
    for member in members:
        target = _target(member.filename)
        if target is None or member.is_dir():
            continue
        known = chosen.setdefault(target, member)
        if (known.CRC, known.file_size) != (member.CRC, member.file_size):
            raise DataError(f"{archive.name}: {known.filename} and {member.filename} are two images of one name")
    return chosen


def _leaves(member: zipfile.ZipInfo) -> str | None:
    """Why a member must not be taken out, or None."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if re.match(r"[/\\]|[A-Za-z]:", member.filename):
        return "has an absolute path"
    if ".." in re.split(r"[/\\]", member.filename):
        return "leaves its folder"
    return None


def _target(name: str) -> tuple[str, str, str] | None:
    """("train", "NORMAL", "IM-0001-0001.jpeg") of a member's path, None for what is not wanted."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or "__MACOSX" in parts or parts[-1].startswith("."):
        return None
    part, label, file = parts[-3].lower(), parts[-2].upper(), parts[-1]
    wanted = part in contract.SPLITS and label in contract.LABELS and file.lower().endswith(SUFFIXES)
    return (part, label, file) if wanted else None
