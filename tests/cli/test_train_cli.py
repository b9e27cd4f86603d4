"""train, evaluate, gate and export as a person types them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import open_bundle
from pneumonia.data.prepare import PreparedData
from tests.phantoms import OPEN_GATE, SMOKE


def _pneumoctl(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def swept(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """A folder with two runs of one sweep, and what the command printed."""
    folder = Path(tmp_path_factory.mktemp("cli"))
    done = _pneumoctl("train", *SMOKE, "model.learning_rate=1e-4,1e-3", "--multirun", "--prepared", prepared.path,
                      cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_sweep_trains_each_combination_and_prints_one_line_for_each(
    swept: tuple[Path, list[dict[str, object]]],
) -> None:
    folder, lines = swept
    assert len(lines) == 2
    bundles = [open_bundle(folder / str(line["bundle"])) for line in lines]
    assert [bundle.manifest.config["model"]["learning_rate"] for bundle in bundles] == [1e-4, 1e-3]
    assert bundles[0].digest != bundles[1].digest
    for line in lines:
        assert 0 <= line["validation"]["auroc"] <= 1  # type: ignore[index]


def test_a_finished_model_is_evaluated_refused_and_with_an_open_gate_exported(
    swept: tuple[Path, list[dict[str, object]]], prepared: PreparedData
) -> None:
    folder, lines = swept
    bundle = ("--bundle", str(lines[0]["bundle"]), "--prepared", prepared.path)
    done = _pneumoctl("evaluate", *SMOKE, *bundle, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "runs/evaluation" / contract.REPORT_FILE).is_file()
    refused = _pneumoctl("export", *SMOKE, *bundle, "gate.accuracy=1", cwd=folder)
    assert refused.returncode == 5
    assert refused.stdout == ""
    assert refused.stderr.splitlines()[-1].startswith("error: the gate refused this model: test accuracy")
    assert not (folder / "models").exists()
    done = _pneumoctl("export", *SMOKE, *bundle, *OPEN_GATE, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert open_bundle(folder / "models").model_id == json.loads(done.stdout)["model_id"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("train", "training.epochs=3"), 2, "the nearest is training.num_train_epochs"),
        (("train", "experiment=smoke", "--prepared", "nowhere"), 3, "pneumoctl data prepare"),
        (("gate", "--evaluation", "nowhere"), 3, "pneumoctl evaluate"),
        (("evaluate", "--bundle", "nowhere", "--prepared", "nowhere"), 4, "no bundle at nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    done = _pneumoctl(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line


@pytest.mark.parametrize(
    ("command", "setting", "says"),
    [
        ("train", "model.checkpoint=nobody/no-such-model", "experiment=local"),
        ("baseline", "model.baseline=nobody/no-such-network", "model.baseline=pixels"),
    ],
)
def test_a_hub_that_does_not_answer_is_one_line_before_any_work(
    command: str, setting: str, says: str, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    # Tracking is on, and data would be drawn and prepared first. Nobody listens on port 9.
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    done = _pneumoctl(command, "experiment=smoke", "data=phantom", setting, cwd=work, **hub)
    assert done.returncode == 4, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {setting}: neither a folder here nor on a hub that answers") and says in line
    assert list(work.iterdir()) == []
