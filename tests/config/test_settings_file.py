"""A configuration that was written to a file or to overrides is read back as what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumonia.config.compose import changed, compose, load, to_yaml
from pneumonia.errors import ConfigError

EXPERIMENTS = ("local", "smoke", "vit_base", "dinov2_small")
ODD = ["data.root=it's a \\ [folder], really", "data.label_column=null", "model.name=1", "tracking.uri=null"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("more", [[], ["split.hold_out=[NORMAL2,virus]", *ODD]])
def test_file_and_overrides_are_read_back(experiment: str, more: list[str], tmp_path: Path) -> None:
    config = compose([f"experiment={experiment}", "data=folder", "data.root=/x"][: None if not more else 2] + more)
    (tmp_path / "settings").write_text(to_yaml(config))
    assert load(tmp_path / "settings") == config
    assert compose(changed(config)) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no settings of this version"),
        ("no_such: 1", "no_such"),
        ("[", "no settings of this version"),
        ("gate: {recall: 3}", "gate.recall=3.0: outside 0..1"),
    ],
)
def test_a_file_that_is_none_of_ours_is_one_line(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "settings").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load(tmp_path / "settings")
    assert "\n" not in str(caught.value)
