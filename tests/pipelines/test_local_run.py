"""`pneumoctl pipeline run` for real: a tiny model through every step, and one that the gate refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import open_bundle
from pneumonia.release_manifest import verify_release

TINY = ("experiment=smoke", "data.num_images=160", "evaluation.recall_target=0.5", "tracking.uri=null")
OPEN_GATE = ("gate.accuracy=0", "gate.precision=0", "gate.recall=0", "gate.f1=0", "gate.recall_low=0")


def pipeline_run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The command, with everything it writes under `folder`."""
    command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", "pipeline", "run", *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_a_run_ends_with_bundle_report_and_release(tmp_path: Path) -> None:
    pytest.importorskip("kfp", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")
    done = pipeline_run(tmp_path, *TINY, *OPEN_GATE)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    bundle = open_bundle(tmp_path / "models")
    assert bundle.model_id == result["model_id"]
    assert bundle.has(contract.ONNX_FILE)
    assert bundle.manifest.synthetic is result["synthetic"] is True
    assert bundle.manifest.config["data"]["source"] == "phantom"
    assert verify_release(Path(result["release"]))["digest"] == bundle.digest
    assert Path(result["release"]).parent == tmp_path / "releases"
    assert "synthetic" in Path(result["report"]).read_text("utf-8").lower()
    measured = json.loads((Path(result["evaluation"]) / contract.METRICS_FILE).read_text("utf-8"))
    assert result["metrics"]["recall"] == measured["test"]["recall"]["value"]
    assert "KFP Executor" not in done.stderr
    assert list(result["seconds"]) == [
        "check", "fetch", "prepare", "train", "evaluate", "gate", "export", "publish", "notify",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_refused_model_goes_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("kfp", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")
    done = pipeline_run(tmp_path, *TINY, "gate.accuracy=1.0")
    assert done.returncode == 5, done.stderr
    assert done.stdout == ""
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("error: step gate: the gate refused this model: test accuracy")
    assert "is below 1" in last
    ran = {path.parent.name for path in tmp_path.glob("pipeline_runs/*/*/*/executor_output.json")}
    assert ran == {"check", "fetch", "prepare", "train", "evaluate", "notify"}
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "releases").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["training.num_train_epoch=5"], 2, "training.num_train_epochs"),
        (["data=folder"], 2, "data.root"),
        (["--data", "nowhere"], 3, "nowhere"),
        (["--data", "x", "data.root=y"], 2, "give it once"),
        (["--engine", "argo"], 2, "subprocess"),
    ],
    ids=["typo", "no-root", "no-folder", "twice", "engine"],
)
def test_user_mistakes_are_one_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = pipeline_run(tmp_path, *arguments)
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert words in last
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.returncode == code
