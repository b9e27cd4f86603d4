"""The generated references are those of the present code, on whatever terminal, and lack nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia.config.compose import _keys


@pytest.fixture(scope="module")
def generated(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files as a narrow terminal with colours gives them."""
    out = tmp_path_factory.mktemp("docs")
    terminal = {"COLUMNS": "40", "TERMINAL_WIDTH": "40", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    subprocess.run([sys.executable, root / "tools/docs.py", out], env={**os.environ, **terminal}, check=True)
    return out


@pytest.mark.parametrize("name", ["cli.md", "config.md"])
def test_what_is_committed_is_what_the_code_gives(root: Path, generated: Path, name: str) -> None:
    assert (root / "docs" / name).read_text("utf-8") == (generated / name).read_text("utf-8"), "run `make generate`"


def test_every_command_and_option_stands_in_the_reference(generated: Path) -> None:
    text = (generated / "cli.md").read_text("utf-8")
    for words in ([], ["train"], ["infer"], ["data", "fetch"], ["pipeline", "run"]):
        command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", *words, "--help"]
        plain = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
        shown = subprocess.run(command, env=plain, check=True, capture_output=True, text=True).stdout
        title = f"`{' '.join(['pneumoctl', *words])}`"
        section = text.partition(f"# {title}\n")[2].partition("\n## " if words else "\n## `pneumoctl train`")[0]
        options = re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown)
        assert options, shown
        assert [option for option in options if option not in section] == []


def test_every_key_stands_in_the_reference_with_its_meaning(generated: Path) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| `.*` \| (.+) \|$", (generated / "config.md").read_text("utf-8"), re.M)
    assert sorted(key for key, _ in rows) == sorted(_keys())
    assert [key for key, meaning in rows if len(meaning) < 5] == []
