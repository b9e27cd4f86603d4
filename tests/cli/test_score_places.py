"""`pneumoctl score` and paths that cannot be read, or a journal that is not what it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from tests.bundles import xray
from tests.faults.children import pneumoctl

LONG = "x" * 300 + ".jpeg"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Two images, another and a list in a folder that may not be entered, and a list of them all."""
    locked = tmp_path / "locked"
    locked.mkdir()
    for path in (tmp_path / "a.jpeg", tmp_path / "z.jpeg", locked / "b.jpeg"):
        path.write_bytes(xray(1, (64, 64)))
    (locked / "list.txt").write_text("a.jpeg\n")
    (tmp_path / "list.txt").write_text(f"a.jpeg\n{LONG}\nlocked/b.jpeg\ngone.jpeg\nnul\0.jpeg\nz.jpeg\n")
    (tmp_path / "closed.txt").write_text("a.jpeg\n")
    (tmp_path / "closed.txt").chmod(0)
    locked.chmod(0)
    yield tmp_path
    locked.chmod(0o700)


def rows(path: Path) -> list[dict[str, str | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_paths_that_cannot_be_read_are_rows_with_their_error(bundle: Bundle, folder: Path) -> None:
    done = pneumoctl(folder, "score", "@list.txt", "-o", "out.jsonl", "--bundle", bundle.path, restricted=True)
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    errors = {row["filename"]: row["error"] for row in rows(folder / "out.jsonl")}
    assert [name for name, error in errors.items() if error is None] == ["a.jpeg", "z.jpeg"]
    for name, reason in {LONG: "File name too long", "locked/b.jpeg": "Permission denied",
                         "gone.jpeg": "No such file or directory", "nul\0.jpeg": "null byte"}.items():  # fmt: skip
        assert f"cannot be read ({reason}" in (errors[name] or "").replace("embedded ", "")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (LONG, "cannot be read (File name too long)"),
        (f"@{LONG}", "cannot be read (File name too long)"),
        ("locked/b.jpeg", "locked/b.jpeg: cannot be read (Permission denied)"),
        ("@locked/list.txt", "@locked/list.txt: cannot be read (Permission denied)"),
        ("@closed.txt", "@closed.txt: cannot be read (Permission denied)"),
    ],
)
def test_an_input_that_cannot_be_looked_at_is_said(bundle: Bundle, folder: Path, given: str, words: str) -> None:
    done = pneumoctl(folder, "score", given, "-o", "out.csv", "--bundle", bundle.path, restricted=True)
    done.fails(3, words)
    assert not (folder / "out.csv").exists()


@pytest.mark.parametrize(("out", "words"), [("locked/o.csv", "Permission denied"), (f"{LONG}.csv", "too long")])
def test_an_output_that_cannot_be_written_is_said(bundle: Bundle, folder: Path, out: str, words: str) -> None:
    done = pneumoctl(folder, "score", "a.jpeg", "-o", out, "--bundle", bundle.path, restricted=True)
    done.fails(4, words)


def cut_off(folder: Path, bundle: Bundle) -> str:
    """The journal of a run that was cut off after one row, which can be told from any answer."""
    settings = {"inputs": ["a.jpeg", "z.jpeg"], "mode": "onnx", "model_id": bundle.model_id}
    row = {"filename": "a.jpeg", "prediction": "OLD", "confidence": 0.5, "probability": 0.5, "threshold": 0.4,
           "model_id": "old@1", "error": None}  # fmt: skip
    return f"{json.dumps(settings)}\n{json.dumps(row)}\n"


@pytest.mark.parametrize("anew", [False, True])
def test_overwrite_begins_a_cut_off_run_anew(bundle: Bundle, folder: Path, anew: bool) -> None:
    (folder / "out.jsonl.partial").write_text(cut_off(folder, bundle))
    words = ["score", "a.jpeg", "z.jpeg", "-o", "out.jsonl", "--bundle", bundle.path]
    pneumoctl(folder, *words, *(["--overwrite"] if anew else [])).succeeds("" if anew else "going on after 1 rows")
    found = rows(folder / "out.jsonl")
    assert [row["filename"] for row in found] == ["a.jpeg", "z.jpeg"]
    assert (found[0]["prediction"] == "OLD") is not anew


@pytest.mark.parametrize("content", ["hello\n", "precious", '{"other": 1}\n', "[]\n"])
def test_a_journal_that_is_none_is_kept(bundle: Bundle, folder: Path, content: str) -> None:
    journal = folder / "out.jsonl.partial"
    journal.write_text(content)
    words = ["score", "a.jpeg", "-o", "out.jsonl", "--bundle", bundle.path]
    pneumoctl(folder, *words).fails(2, "begin anew with --overwrite")
    assert journal.read_text() == content
    pneumoctl(folder, *words, "--overwrite").succeeds()
    assert len(rows(folder / "out.jsonl")) == 1
    assert not journal.exists()


@pytest.mark.parametrize("bytes_left", [0, 1, 30])
def test_a_run_cut_off_while_it_began_begins_again(bundle: Bundle, folder: Path, bytes_left: int) -> None:
    (folder / "out.jsonl.partial").write_text(cut_off(folder, bundle)[:bytes_left])
    words = ["score", "a.jpeg", "z.jpeg", "-o", "out.jsonl", "--bundle", bundle.path]
    pneumoctl(folder, *words).succeeds()
    assert len(rows(folder / "out.jsonl")) == 2


def test_a_damaged_row_is_said(bundle: Bundle, folder: Path) -> None:
    (folder / "out.jsonl.partial").write_text(cut_off(folder, bundle).replace('"error": null', '"error": '))
    words = ["score", "a.jpeg", "z.jpeg", "-o", "out.jsonl", "--bundle", bundle.path]
    pneumoctl(folder, *words).fails(2, "out.jsonl.partial: damaged")
