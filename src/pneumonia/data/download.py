"""Downloads that go on where they were cut off, in a folder beside the place they are for."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pneumonia.data.parallel import PROGRESS_SECONDS
from pneumonia.errors import DataError, SourceUnavailable
from pneumonia.files import locked

TIMEOUT_S = 20
"""For the connection, and for every silence after it."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may be gone a little later."""
_CHUNK = 1 << 18


@contextlib.contextmanager
def downloads_for(out: Path) -> Iterator[Path]:
    """The folder `.<name>.download` beside `out`, for one process at a time.

    It stays when the body fails, so that the next run goes on, and goes when the body succeeds.
    """
    folder = _folder(out)
    with locked(folder.with_name(f"{folder.name}.lock"), f"fetch: waiting for another process that fetches {out}"):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)


def remove_downloads(out: Path) -> None:
    """Remove what a fetch of `out` that was killed after its work had kept, and nothing where there is nothing."""
    if _folder(out).is_dir():
        with downloads_for(out):
            pass


def _folder(out: Path) -> Path:
    return out.parent / f".{out.name}.download"


def download(url: str, target: Path, md5: str) -> Path:
    """Bring `url` to `target`, whose MD5 in hex is `md5`; nothing is asked for where it is there already.

    What came before a cut is kept as <target>.part and the next call asks for the rest (an HTTP range). Raises
    SourceUnavailable where the server does not answer, refuses or stops, and DataError, removing the file, where the
    MD5 differs: of a part and a rest that do not belong together, or of another file.
    """
    part = target.with_name(f"{target.name}.part")
    if not target.is_file():
        try:
            _fetch_rest(url, part)
        except urllib.error.HTTPError as error:
            passing = error.code in PASSING
            raise SourceUnavailable(f"{url}: HTTP {error.code} {error.reason}; {_OTHERWISE}", passing) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
            so_far = part.stat().st_size if part.is_file() else 0
            raise SourceUnavailable(
                f"{url}: cut off or no answer ({_reason(error)}); {so_far:,} bytes are kept and the same command goes "
                f"on from there; {_OTHERWISE}",
                transient=not isinstance(error, ValueError),
            ) from error
        part.replace(target)
    found = _md5(target)
    if found != md5:
        target.unlink()
        raise DataError(
            f"{url}: came with MD5 {found}, expected {md5}; the file is removed, so run the same command again, or "
            "name another address"
        )
    return target


_OTHERWISE = "offline, use data=folder data.root=<folder> or data=phantom"


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", error)) or type(error).__name__


def _fetch_rest(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`; a server without ranges sends everything again."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: Any = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing follows what is there; whether it is whole, its MD5 will tell
            return
        raise
    with response:
        have = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        print(f"fetch: {url}, {_megabytes(total)}" + (f", from {_megabytes(have)} on" if have else ""), file=sys.stderr)
        with part.open("ab" if have else "wb") as stream:
            for piece in _pieces(response, have, total):
                stream.write(piece)
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"{part.stat().st_size:,} of {total:,} bytes came")


def _pieces(response: Any, done: int, total: int | None) -> Iterator[bytes]:
    """The body piece by piece, with progress on stderr."""
    said = time.monotonic()
    # read1 hands over what has come, so that a cut loses nothing of it.
    while piece := response.read1(_CHUNK):
        yield piece
        done += len(piece)
        if time.monotonic() - said >= PROGRESS_SECONDS:
            said = time.monotonic()
            print(f"fetch: {_megabytes(done)} of {_megabytes(total)}", file=sys.stderr)


def _megabytes(count: int | None) -> str:
    return "unknown size" if count is None else f"{count / 1e6:.1f} MB"


def _md5(path: Path) -> str:
    # A check against accidents with the sum that the publisher gives, not against an attacker.
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
