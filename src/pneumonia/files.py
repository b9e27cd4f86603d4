"""Files that are either whole or absent: write under a temporary name, then rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pneumonia.errors import PneumoniaError, StorageError, UsageError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that say that a place takes no more, whichever call meets them."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""What moves a terminal's cursor, ends a line, or turns the direction of writing."""
_PART = ".part"
"""Ends the name of what is being written, so that a killed writer's remains are known for what they are."""
_FULL_BELOW_BYTES = 1 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def printable(text: str) -> str:
    """Text with a file name in it, on one line: control characters as \\xNN, bytes that are not UTF-8 as \\udcXX."""
    escaped = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return escaped.encode("utf-8", "backslashreplace").decode()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cannot_write(target: Path, error: OSError) -> StorageError:
    """The library's own error for a place that cannot be written."""
    return StorageError(
        f"{target}: cannot be written ({error.strerror or error}); free space, or choose another place. "
        "What was there before is unchanged"
    )


@contextlib.contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Around libraries that write by themselves: what they raise on a full disk becomes StorageError.

    They have no class for it: safetensors quotes the system, PyTorch only says that it failed, so the disk is asked.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, PneumoniaError):
            raise
        if os.strerror(errno.ENOSPC) not in str(error) and shutil.disk_usage(target.parent).free > _FULL_BELOW_BYTES:
            raise
        raise cannot_write(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content takes the place of `path` on success; a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_remains(path)
    temporary, handle = _start(path, directory=False)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Raises StorageError where the place is full or may not be written.
    """
    try:
        with replace_file(path) as stream:
            stream.write(data)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """UTF-8 form of `write_bytes`.

    Bytes of a file name that are not UTF-8 become \\udcXX, which in JSON is an escape that is read back as they were.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline, written whole. NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def check_replaceable(target: Path, marker: str, option: str = "--output") -> None:
    """Before any work: raises UsageError where `target` holds files and no `marker`, so that it is not ours to replace.

    marker: the file that every folder of this kind has. option: what chose the folder.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target}: is a file; name a folder with {option}")
    if not (target / marker).is_file() and (others := sorted(entry.name for entry in target.iterdir())):
        raise UsageError(
            f"{target}: holds {', '.join(others[:3])} and no {marker}, and would be replaced as a whole; name a new or "
            f"empty folder with {option}, or an older one with {marker}"
        )


@contextlib.contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside `target`; on success it takes `target`'s place, on an error it goes.

    On Linux the two change places in one step, so that even a killed writer leaves the old content or the new one;
    what it was writing is removed by the next writer. A link is followed, and stays. Raises StorageError where the
    place is full, may not be written or cannot be replaced, such as a mount point.
    """
    # The folder that a link names changes, not the link: beside the link there may be no room for it.
    target = Path(os.path.realpath(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_remains(target)
        building, handle = _start(target, directory=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        yield building
        _install(building, target)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise cannot_write(target, error) from error
        raise
    finally:
        # The former content after an exchange, what was being written after an error, nothing after a first write.
        shutil.rmtree(building, ignore_errors=True)
        os.close(handle)


@contextlib.contextmanager
def locked(lock: Path, waiting: str) -> Iterator[None]:
    """One process at a time, by a lock on the file `lock`; a second one says `waiting` on stderr and waits."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def usual_mode(directory: bool) -> int:
    """Permissions of a new folder or file as this process's umask has them, which `tempfile` does not ask."""
    # Read by setting it: a file that another thread makes meanwhile is private, never open.
    umask = os.umask(0o077)
    os.umask(umask)
    return (0o777 if directory else 0o666) & ~umask


def _start(target: Path, *, directory: bool) -> tuple[Path, int]:
    """A new file or directory beside `target`, and the handle whose lock says that a living process writes it."""
    names: dict[str, Any] = {"prefix": f".{target.name}.", "suffix": _PART, "dir": target.parent}
    while True:
        handle, made = (None, tempfile.mkdtemp(**names)) if directory else tempfile.mkstemp(**names)
        path = Path(made)
        try:
            handle = os.open(path, os.O_RDONLY) if handle is None else handle
            _lock(handle)
            # Made private; readers such as a server under another user need what the user's umask leaves them.
            os.chmod(path, usual_mode(directory))
        except (BlockingIOError, FileNotFoundError):
            # Between its making and its lock another writer has taken it for remains.
            if handle is not None:
                os.close(handle)
            continue
        return path, handle


def _lock(handle: int) -> None:
    """Lock what is being written until the handle is closed or the process ends. Raises BlockingIOError."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # A file system without locks, where remains cannot be told from work and stay.


def remove_remains(target: Path) -> None:
    """Remove what killed writers of `target` left, and nothing that a living one holds.

    Every write does; a step that finds its work done calls it by itself.
    """
    start = f".{target.name}."
    for name in os.listdir(target.parent) if target.parent.is_dir() else ():
        if name.startswith(start) and name.endswith(_PART):
            path = target.parent / name
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()
                finally:
                    os.close(handle)


def _install(building: Path, target: Path) -> None:
    """`_exchange`, its errors as StorageError."""
    try:
        _exchange(building, target)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise StorageError(
                f"{target}: is a mount point, which cannot be replaced ({error.strerror}); choose a folder inside the "
                "mount. What was there before is unchanged"
            ) from error
        raise cannot_write(target, error) from error


def _exchange(building: Path, target: Path) -> None:
    """Put `building` in `target`'s place and `target`, where it exists, in `building`'s."""
    if not target.exists():
        os.replace(building, target)
        return
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        paths = os.fsencode(building), os.fsencode(target)
        if rename and rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
    # No exchange here: for a moment there is neither, and a crash in it leaves the old content under the other name.
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        os.replace(target, old / "previous")
    except OSError:
        old.rmdir()
        raise
    os.replace(building, target)
    shutil.rmtree(old)
