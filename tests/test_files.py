"""What a written file may be read by."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia.files import replace_directory, replace_file


@pytest.fixture
def restored() -> Iterator[None]:
    kept = os.umask(0o022)
    yield
    os.umask(kept)


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_the_users_umask_decides_who_may_read(
    umask: int, file: int, folder: int, tmp_path: Path, restored: None
) -> None:
    os.umask(umask)
    with replace_file(tmp_path / "answers.csv") as stream:
        stream.write(b"a patient")
    with replace_directory(tmp_path / "data") as building:
        (building / "one").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("answers.csv", "data")]
    assert modes == [file, folder]
    assert os.umask(umask) == umask
