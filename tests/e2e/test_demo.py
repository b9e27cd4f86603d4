"""`pneumoctl demo` for real, with a tiny model: pipeline, server, answers of every mode, table."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia.bundle import open_bundle
from pneumonia.cli.demo import Answers, Example, free_ports
from pneumonia.core.prediction import Prediction
from pneumonia.errors import ParityRefused

TINY = (
    *("experiment=smoke", "data.num_images=160", "evaluation.recall_target=0.5", "tracking.uri=null"),
    *("gate.accuracy=0", "gate.precision=0", "gate.recall=0", "gate.f1=0", "gate.recall_low=0"),
)
HAS_SERVER = (sys.platform, platform.machine()) == ("linux", "x86_64")


@pytest.mark.slow
def test_demo_shows_every_mode_and_cleans_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", "demo", *TINY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    modes = ["onnx", "pytorch", *(["triton http", "triton grpc"] if HAS_SERVER else [])]
    for truth in ("NORMAL", "PNEUMONIA"):
        for mode in modes:
            line = rf"^\S+\.jpeg +{truth} +{mode} +(NORMAL|PNEUMONIA) +[01]\.\d{{4}}$"
            assert len(re.findall(line, done.stdout, re.MULTILINE)) == 1, f"{truth} by {mode}:\n{done.stdout}"
    assert "SYNTHETIC" in done.stdout
    for name in ("accuracy", "precision", "recall", "f1"):
        assert re.search(rf"^{name} +\d\.\d{{4}} .*>= 0.00$", done.stdout, re.MULTILINE)
    report = re.search(r"^report +(.+)$", done.stdout, re.MULTILINE)
    assert report
    assert Path(report[1]).is_file()
    assert open_bundle(tmp_path / "models").model_id in done.stdout
    assert not list(tmp_path.glob("pipeline_runs/*/*/prepare/prepared")), "the pixel cache is left behind"
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left, "a process of the demo is still up"


def answers(**confidences: tuple[str, float]) -> Answers:
    """One image, by mode a label and a confidence."""
    said = {mode: [Prediction(label, p, p, 0.5, False, "toy")] for mode, (label, p) in confidences.items()}
    return Answers([Example("a.jpeg", "NORMAL", b"")], said)


def test_small_differences_pass() -> None:
    answers(onnx=("NORMAL", 0.9), triton=("NORMAL", 0.9009)).require_agreement()


@pytest.mark.parametrize("other", [("NORMAL", 0.9011), ("PNEUMONIA", 0.9)])
def test_disagreement_is_refused(other: tuple[str, float]) -> None:
    with pytest.raises(ParityRefused, match=r"a\.jpeg: onnx NORMAL 0\.9000, triton"):
        answers(onnx=("NORMAL", 0.9), triton=other).require_agreement()


def test_free_ports_differ() -> None:
    assert len(set(free_ports(3))) == 3
