"""Whatever bytes come, the reader answers or refuses with its own error, in bounded memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_ten_thousand_mutated_files(root: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("what a process had in memory is read from /proc")
    command = [sys.executable, "-m", "tests.core.fuzz_images", "10000", "42"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    print(result)
    assert set(result["outcomes"]) == {"read", "refused"}
    assert min(result["outcomes"].values()) > 1000
    # 64 megapixels with transparency, the most that is decoded, are 256 MiB before they are grey.
    assert result["memory_bytes"] < 800 << 20
    assert result["slowest_s"] < 5


def test_damaged_headers_cost_no_picture(root: Path) -> None:
    """1,600 files; docs/bad-input.md has the command for 20,000."""
    pytest.importorskip("pydicom", reason="pydicom is not installed; pip install 'pneumonia[dicom]'")
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.fuzz_headers", "1600", "42"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")
    ends = json.loads(done.stdout)
    for kind in ("EXIF", "PNG chunks"):
        assert ends[kind] == {"read": 400}
    for kind in ("DICOM bytes", "DICOM elements"):
        assert set(ends[kind]) == {"read", "refused"} and min(ends[kind].values()) > 50
