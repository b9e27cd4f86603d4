"""Bulk scoring holds no row: the most that it allocates for 1,000 images and for 4,000, by format and kind of input.

tests/cli/test_score.py measures the whole process, coarsely; this counts Python's allocations, in which a hundred bytes
a row show.
"""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from pneumonia.inference import journal
from pneumonia.inference.inputs import Inputs
from pneumonia.inference.score import from_server, score
from tests.fake_predictor import FakePredictor
from tests.inference.test_inputs import write_tar

FEW, MANY = 1_000, 4_000


def tiny() -> bytes:
    """A PNG of 64 x 64 pixels."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).save(stream, "PNG")
    return stream.getvalue()


def given(root: Path, kind: str, count: int) -> str:
    """An input of `count` images."""
    root.mkdir()
    if kind == "list":
        (root / "x.png").write_bytes(tiny())
        (root / "list.txt").write_text(f"{root}/x.png\n" * count)
        return f"@{root}/list.txt"
    write_tar(root / "x.tar", {f"{number:05d}.png": tiny() for number in range(count)}, "w")
    return f"{root}/x.tar"


def peak_bytes(source: str, out: Path) -> int:
    """The most that Python holds at one time while `source` is scored."""
    tracemalloc.start()
    try:
        done = score(Inputs([source]), out, from_server(FakePredictor, 2, 0), {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.errors == 0
    return peak


@pytest.mark.parametrize(
    ("kind", "suffix", "bytes_a_row"),
    [
        ("list", "csv", 100),
        ("list", "parquet", 100),
        ("tar", "jsonl", 100),
    ],
)
def test_what_a_run_holds_does_not_grow_with_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str, bytes_a_row: int
) -> None:
    monkeypatch.setattr(journal, "_ROW_GROUP", 500)  # So that the shorter run writes several groups too.
    peak_bytes(given(tmp_path / "warm", kind, 100), tmp_path / f"warm.{suffix}")
    peaks = {
        count: peak_bytes(given(tmp_path / f"{count}", kind, count), tmp_path / f"{count}.{suffix}")
        for count in (FEW, MANY)
    }
    assert peaks[MANY] - peaks[FEW] < bytes_a_row * (MANY - FEW), peaks
