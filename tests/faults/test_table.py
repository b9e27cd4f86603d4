"""docs/bad-input.md is the table that the tests run."""

from __future__ import annotations

from pathlib import Path

from tests.faults.rows import ROWS, render

BEGIN, END = "<!-- table:begin -->\n", "<!-- table:end -->"


def test_the_document_shows_the_rows_that_are_tested(root: Path) -> None:
    text = (root / "docs" / "bad-input.md").read_text("utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == render().strip(), "put the output of `python -m tests.faults.rows` into docs/bad-input.md"


def test_names_are_of_one_row_each() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
