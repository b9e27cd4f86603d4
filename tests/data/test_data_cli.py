"""`pneumoctl data` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia.data.prepare import load_prepared


def pneumoctl(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_fetch_without_a_source_lists_them(tmp_path: Path) -> None:
    result = pneumoctl(tmp_path, "data", "fetch")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no data source chosen")
    assert "data=phantom" in result.stderr and "data=folder" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "overrides, said",
    [
        ([], "nothing fetched here; run `pneumoctl data fetch"),
        (["data=folder", "data.root=nowhere"], "nowhere: not a folder"),
        (["data=folder", "data.root=."], "no .jpeg, .jpg, .png, .dcm, .dicom files in folders NORMAL and PNEUMONIA"),
    ],
)
def test_bad_input_exits_3_with_one_line_and_no_traceback(tmp_path: Path, overrides: list[str], said: str) -> None:
    result = pneumoctl(tmp_path, "data", "prepare", *overrides)
    assert (result.returncode, result.stdout) == (3, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_prepare_fetches_first_and_prints_one_json_line(tmp_path: Path) -> None:
    arguments = ("data", "prepare", "data=phantom", "data.num_images=100")
    first = pneumoctl(tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    data = load_prepared(tmp_path / answer["path"])
    assert answer == {"path": "data/prepared", **{key: data.manifest[key] for key in list(answer)[1:]}}
    assert set(answer) >= {"digest", "synthetic", "counts"}
    assert sum(answer["counts"]["by_split"].values()) == 100
    again = pneumoctl(tmp_path, *arguments)
    assert again.stdout == first.stdout
    assert again.stderr.count("is up to date") == 2


def test_fetch_then_prepare_without_naming_the_source_again(kaggle: Path, tmp_path: Path) -> None:
    fetched = pneumoctl(tmp_path, "data", "fetch", "data=folder", f"data.root={kaggle}")
    assert json.loads(fetched.stdout) == {"path": "data/raw", "source": "folder", "synthetic": False}
    prepared = pneumoctl(tmp_path, "data", "prepare")
    assert json.loads(prepared.stdout)["counts"]["patients"] == 72
