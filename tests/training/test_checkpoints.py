"""A run goes on from its own checkpoints and from no others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia.bundle import open_bundle
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import ConfigError, MissingPrerequisite
from pneumonia.training.checkpoints import RUN_FILE, resume_point, start_anew
from pneumonia.training.train import CHECKPOINTS, train
from tests.phantoms import SMOKE, prepared_phantoms, smoke_config

RESUME = "training.resume=true"


@pytest.fixture(scope="module")
def finished(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended well."""
    folder = Path(tmp_path_factory.mktemp("finished"))
    return train(smoke_config(folder), prepared.path, folder / "run" / "bundle").path.parent


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_goes_on_with_what_leaves_its_weights_as_they_are(
    run: Path, prepared: PreparedData, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ("evaluation.recall_target=0.9", "training.per_device_eval_batch_size=8", "data.workers=1",
             "gate.recall=0.5")  # fmt: skip
    before = open_bundle(run / "bundle").manifest.files
    bundle = train(smoke_config(run.parent, RESUME, *other), prepared.path, run / "bundle")
    assert "going on from checkpoint-4" in capsys.readouterr().err
    assert bundle.manifest.recall_target == 0.9
    assert bundle.manifest.files.keys() == before.keys()


def test_checkpoints_of_other_data_are_refused(run: Path, prepared: PreparedData, tmp_path: Path) -> None:
    other = prepared_phantoms(tmp_path, "split.seed=7")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="are of another run") as caught:
        train(smoke_config(tmp_path, RESUME), other.path, run / "bundle")
    now, then = other.manifest["digest"], prepared.manifest["digest"]
    assert f"data.digest was {then} and is {now}" in str(caught.value)
    assert "start without training.resume" in str(caught.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_checkpoints_of_other_settings_are_refused_with_both_values(
    run: Path, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = smoke_config(run.parent, RESUME, "training.max_steps=8", "model.learning_rate=1e-3")
    with pytest.raises(ConfigError) as caught:
        train(config, prepared.path, run / "bundle")
    for difference in ("training.max_steps was 4 and is 8", "model.learning_rate was 0.0005 and is 0.001",
                       "processes was 1 and is 2"):  # fmt: skip
        assert difference in str(caught.value)
    assert "max_steps: 4" in (run / "config.yaml").read_text()


def test_a_run_that_was_killed_at_once_leaves_nothing_of_the_run_before_it_to_resume(
    run: Path, prepared: PreparedData
) -> None:
    output = f"output_dir={run.parent}"
    settings = [*SMOKE, output, "model.name=run", "training.max_steps=4000", "training.num_train_epochs=4000"]
    command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", "train", *settings,
               "--prepared", str(prepared.path)]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        assert any("images an epoch" in line for line in process.stderr)
        process.kill()
    config = smoke_config(run.parent, *settings[len(SMOKE) :], RESUME)
    # Where the kill came late enough, there is one of its own to go on from; never one of the first run.
    left = [path.name for path in (run / CHECKPOINTS).glob("checkpoint-*")]
    assert "checkpoint-4" not in left
    if not left:
        with pytest.raises(MissingPrerequisite, match="no checkpoint under"):
            train(config, prepared.path, run / "bundle")
    assert json.loads((run / CHECKPOINTS / RUN_FILE).read_text())["training.max_steps"] == 4000


def test_checkpoints_that_do_not_say_whose_they_are_are_refused(run: Path, prepared: PreparedData) -> None:
    (run / CHECKPOINTS / RUN_FILE).unlink()
    with pytest.raises(ConfigError, match=r"older versions wrote none.*; start without training\.resume"):
        train(smoke_config(run.parent, RESUME), prepared.path, run / "bundle")


def test_resuming_passes_over_checkpoints_that_were_not_written_to_their_end(tmp_path: Path) -> None:
    config = smoke_config(tmp_path)
    start_anew(tmp_path, config, "digest")
    for step, state in ((4, "{}"), (8, '{"epoch": 1.0, "glo'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert Path(resume_point(tmp_path, config, "digest")).name == "checkpoint-4"


def test_resuming_without_a_checkpoint_says_so(prepared: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="no checkpoint under"):
        train(smoke_config(tmp_path, RESUME), prepared.path, tmp_path / "run" / "bundle")
