"""The pipeline of bulk scoring, run by the real kfp.local: shards of drawn images, scored, merged into one table."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pneumonia.bundle import Bundle
from pneumonia.errors import BadInput
from pneumonia.pipelines.run import compiled_pipeline
from pneumonia.pipelines.shards import merge_scores
from tests.bundles import xray

pytest.importorskip("kfp", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")


def run(folder: Path, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run score.yaml through the engine process, as `pneumoctl pipeline run` does with train.yaml."""
    (folder / "run").mkdir()
    (folder / "errors").mkdir()
    (folder / "scratch").mkdir()
    request = {"engine": "subprocess", "pipeline": str(compiled_pipeline("score")), "arguments": arguments,
               "root": str(folder / "run"), "scratch": str(folder / "scratch"), "cache": None}  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request))
    return subprocess.run(
        [sys.executable, "-m", "pneumonia.pipelines.engine", str(folder / "request.json")],
        env={**os.environ, "PNEUMONIA_STEP_ERRORS": str(folder / "errors"), "TMPDIR": str(folder)},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.mark.slow
def test_shards_give_one_table_of_every_image(bundle: Bundle, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(7):
        (images / f"{number}.jpeg").write_bytes(xray(number))
    (images / "broken.jpeg").write_bytes(b"not an image")
    done = run(tmp_path, images=str(images), bundle=str(bundle.path.resolve()), shards=3)
    assert done.returncode == 0, done.stdout
    (table,) = tmp_path.glob("run/*/merge-scores/scores/scores.csv")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["filename"]).name for row in rows] == [*(f"{number}.jpeg" for number in range(7)), "broken.jpeg"]
    assert [row["prediction"] in ("NORMAL", "PNEUMONIA") for row in rows] == [True] * 7 + [False]
    assert {row["model_id"] for row in rows[:7]} == {bundle.model_id}
    assert rows[-1]["error"]
    assert len(list(tmp_path.glob("run/*/*-iteration-*/score-shard/scores/scores.csv"))) == 3


def test_no_images_stops_the_run_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run(tmp_path, images=str(tmp_path / "empty"), bundle="nowhere")
    assert done.returncode == 1
    left = json.loads((tmp_path / "errors" / "list_shards.json").read_text())
    assert left["exit_code"] == BadInput.exit_code
    assert "no image files" in left["reason"]
    assert "notify: pneumonia: " in done.stdout
    assert not list(tmp_path.glob("run/*/merge-scores/*"))


def test_an_image_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.csv").write_text("filename,prediction,error\nx.jpeg,NORMAL,\n")
    assert merge_scores([tmp_path / "a"], tmp_path / "one")["predicted_NORMAL"] == 1
    with pytest.raises(BadInput, match=r"x\.jpeg is in two shards"):
        merge_scores([tmp_path / "a", tmp_path / "b"], tmp_path / "two")
