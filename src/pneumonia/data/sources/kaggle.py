"""Chest X-Ray Images (Pneumonia), Kermany et al. 2018 (doi:10.17632/rscbjbr9sj.2), through the kaggle package."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.config.schema import DataConfig
from pneumonia.core.listing import SUFFIXES
from pneumonia.data.archive import extract_images
from pneumonia.data.download import PASSING, downloads_for, remove_downloads
from pneumonia.data.sources import SOURCE_FILE, check_replaceable, read_source
from pneumonia.errors import DataError, DependencyMissing, SourceUnavailable
from pneumonia.files import replace_directory, write_json

DATASET = "paultimothymooney/chest-xray-pneumonia"
PUBLISHED = {
    "train": {"NORMAL": 1341, "PNEUMONIA": 3875},
    "val": {"NORMAL": 8, "PNEUMONIA": 8},
    "test": {"NORMAL": 234, "PNEUMONIA": 390},
}
"""Images by part and class, 5,856 in all."""
_TIMEOUT_S = (5, 60)
"""For the connection, and for every silence after it."""

_FORMS = (
    "KAGGLE_API_TOKEN=<token or a file of it>",
    "~/.kaggle/access_token",
    "KAGGLE_USERNAME=<name> with KAGGLE_KEY=<key>",
    "kaggle.json in $KAGGLE_CONFIG_DIR or ~/.kaggle",
    "`kaggle auth login`",
)
_REFUSALS = {
    401: "the credentials are refused; make a new token at kaggle.com/settings",
    403: f"access is refused; open kaggle.com/datasets/{DATASET} with this account and accept its terms",
    404: "the data set is not there any more",
    429: "too many requests; wait a while",
}
_OTHERWISE = "offline, or without an account, use data=folder data.root=<folder> or data=phantom"


def fetch(config: DataConfig, out: Path) -> None:
    """Download the data set and write it to out/<part>/<CLASS>/; nothing is done where it is there already.

    A download that was cut off goes on. Says on stderr where the counts differ from PUBLISHED. Raises
    SourceUnavailable without credentials (before anything is asked of the network), where Kaggle refuses and where the
    download is cut off; DataError for an archive that is damaged or leaves its folder, and where `out` holds other
    files.
    """
    check_replaceable(out, "kaggle")
    if _up_to_date(out):
        remove_downloads(out)
        return
    check_credentials()
    with downloads_for(out) as folder:
        if _up_to_date(out):  # by another process, while this one waited
            return
        archive = _download(folder)
        print(f"fetch: taking the images out of {archive.name}", file=sys.stderr)
        try:
            with replace_directory(out) as building:
                extract_images(archive, building)
                found = count(building)
                if not _total(found):
                    raise DataError(f"{archive.name}: no image in folders NORMAL and PNEUMONIA of train, val and test")
                note = {"source": "kaggle", "synthetic": False, "root": ".", "dataset": DATASET, "images": found,
                        "differs": differences(found)}  # fmt: skip
                write_json(building / SOURCE_FILE, note)
        except DataError as error:
            archive.unlink()
            raise DataError(f"{error}; the archive is removed, so that the same command loads it again") from error
    for difference in differences(found):
        print(f"warning: {difference}", file=sys.stderr)
    print(f"fetch: {_total(found)} images in {out}", file=sys.stderr)


def version(config: DataConfig) -> str:
    """The data set's name and the counts that were published; Kaggle names no content without the download."""
    return f"{DATASET} {json.dumps(PUBLISHED)}"


def count(folder: Path) -> dict[str, dict[str, int]]:
    """Images under `folder` by part and class."""
    by_folder = Counter(
        path.parent.relative_to(folder).as_posix()
        for path in folder.glob("*/*/*")
        if path.name.lower().endswith(SUFFIXES)
    )
    return {part: {label: by_folder[f"{part}/{label}"] for label in contract.LABELS} for part in contract.SPLITS}


def differences(found: dict[str, dict[str, int]]) -> list[str]:
    """One sentence for every part and class whose count is not the published one."""
    return [
        f"{part}/{label} has {found[part][label]} images, {published} are published"
        for part, labels in PUBLISHED.items()
        for label, published in labels.items()
        if found[part][label] != published
    ]


def _total(found: dict[str, dict[str, int]]) -> int:
    return sum(sum(labels.values()) for labels in found.values())


def _up_to_date(out: Path) -> bool:
    """Whether `out` still holds what an earlier fetch put there."""
    if not (out / SOURCE_FILE).is_file():
        return False
    source = read_source(out)
    if source["source"] != "kaggle" or source.get("images") != count(out):
        return False
    print(f"fetch: {out} is up to date, {_total(source['images'])} images", file=sys.stderr)
    return True


def check_credentials() -> None:
    """Raises SourceUnavailable, listing every form, where there are none; asks nothing of the network.

    The kaggle package is not asked, because importing it without credentials prints a page of help to stdout.
    """
    home, environment = Path.home(), os.environ
    if environment.get("KAGGLE_API_TOKEN"):
        return
    config_dir = environment.get("KAGGLE_CONFIG_DIR")
    xdg = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"
    tables = [Path(config_dir)] if config_dir else [home / ".kaggle", xdg]
    legacy: dict[str, Any] = {}
    for table in tables:
        with contextlib.suppress(OSError, ValueError, TypeError):
            legacy.update(json.loads((table / "kaggle.json").read_text("utf-8")))
    legacy |= {key: environment[f"KAGGLE_{key.upper()}"] for key in ("username", "key") if f"KAGGLE_{key.upper()}" in
               environment}  # fmt: skip
    if legacy.get("username") and legacy.get("key"):
        return
    tokens = [home / ".kaggle" / name for name in ("access_token", "access_token.txt", "credentials.json")]
    if "KAGGLE_KERNEL_RUN_TYPE" in environment:  # a notebook on Kaggle
        tokens.append(Path(environment.get("KAGGLE_API_V1_TOKEN", "")))
    for token in tokens:
        with contextlib.suppress(OSError):
            if token.is_file() and token.stat().st_size:
                return
    raise SourceUnavailable(
        f"no Kaggle credentials; make a token at kaggle.com/settings and give it as one of: {', '.join(_FORMS)}; "
        f"{_OTHERWISE}"
    )


def _download(folder: Path) -> Path:
    """The data set's archive in `folder`, resumed by the package where it left off."""
    archive = folder / f"{DATASET.partition('/')[2]}.zip"
    with _quiet():
        try:
            import requests

            with _timeouts(requests):
                _api().dataset_download_files(DATASET, path=str(folder), quiet=False, unzip=False)
        except ImportError as error:
            raise DependencyMissing(f"{error.name} is not installed; pip install 'pneumonia[data]'") from error
        except SystemExit as error:
            raise SourceUnavailable(f"Kaggle: {_REFUSALS[401]}, or use one of: {'; '.join(_FORMS)}") from error
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            said = f"Kaggle: HTTP {code}: {_REFUSALS.get(code, _hide(str(error)))}"
            raise SourceUnavailable(said, code in PASSING) from error
        except requests.RequestException as error:
            raise SourceUnavailable(
                f"Kaggle: cut off or no answer ({type(error).__name__}); what came is kept and the same command goes "
                f"on from there; {_OTHERWISE}",
                transient=True,
            ) from error
        except ValueError as error:
            # The package stores an error page in the place of the file; going on from there would be wrong.
            archive.unlink(missing_ok=True)
            said = f"Kaggle: {_hide(str(error))}; run the same command again"
            raise SourceUnavailable(said, transient=True) from error
    return archive


def _api() -> Any:
    """The package's client, with its credentials checked. Raises SystemExit where Kaggle does not know them."""
    with contextlib.redirect_stdout(io.StringIO()):  # a page of help, which our own error replaces
        try:
            import kaggle
        except OSError as error:
            raise SourceUnavailable(
                f"the kaggle package does not start ({error}); set KAGGLE_CONFIG_DIR=<a folder that can be written>"
            ) from error
        kaggle.api.authenticate()
        return kaggle.api


@contextlib.contextmanager
def _timeouts(requests: Any) -> Iterator[None]:
    """requests waits for ever unless it is told how long, and the package does not tell it."""
    adapter = requests.adapters.HTTPAdapter
    send = adapter.send

    def send_in_time(self: Any, request: Any, **options: Any) -> Any:
        return send(self, request, **{**options, "timeout": _TIMEOUT_S})

    adapter.send = send_in_time
    try:
        yield
    finally:
        adapter.send = send


def _hide(text: str) -> str:
    """Text without the queries of addresses: the storage's carry a signature that opens the file."""
    return re.sub(r"\?\S+", "?...", text)


class _Hiding(io.TextIOBase):
    """Passes what the package prints to stderr, without what must not be read there."""

    def write(self, text: str) -> int:
        sys.stderr.write(_hide(text))
        return len(text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's chatter off stdout. With VERBOSE it would print every request's headers, token too."""
    verbose = {name: os.environ.pop(name) for name in ("VERBOSE", "VERBOSE_OUTPUT") if name in os.environ}
    try:
        with contextlib.redirect_stdout(_Hiding()):
            yield
    finally:
        os.environ.update(verbose)
