"""torchrun with two processes trains as one does with a batch of twice the size, and writes one bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia.architecture import load_model
from pneumonia.bundle import open_bundle
from pneumonia.data.prepare import PreparedData
from tests.phantoms import OPEN_GATE

# Without what depends on how a batch is cut: random changes are drawn and batch statistics taken by process.
PLAIN = (
    *("experiment=smoke", "tracking.uri=null", "evaluation.recall_target=0.5", "training.precision=fp32", *OPEN_GATE),
    *("model.architecture=vit", "model.patch_size=56", "model.input_pool=1", "training.max_steps=-1"),
    *(f"training.augment.{name}=0" for name in (
        "flip_probability", "rotate_degrees", "scale", "translate", "brightness", "contrast", "gamma")),
)  # fmt: skip


def train(processes: int, batch: int, prepared: PreparedData, folder: Path) -> tuple[dict[str, list[float]], Path]:
    """The losses by epoch, of training and of validation, and the bundle."""
    program = "from pneumonia.cli.app import main; main()"
    script = folder / f"train{processes}.py"
    script.write_text(program)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    values = [*PLAIN, f"training.per_device_train_batch_size={batch}", "training.num_train_epochs=3"]
    command = [*start, str(script), "train", *values, "--prepared", str(prepared.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"output_dir={folder / f'out{processes}'}"],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    bundle = Path(json.loads(line)["bundle"])
    history = json.loads((bundle.parent / "history.json").read_text())
    return {key: [entry[key] for entry in history if key in entry] for key in ("loss", "eval_loss")}, bundle


@pytest.mark.slow
def test_two_processes_train_as_one(prepared: PreparedData, tmp_path: Path) -> None:
    one, one_bundle = train(1, 16, prepared, tmp_path)
    two, two_bundle = train(2, 8, prepared, tmp_path)
    assert len(one["loss"]) == 3
    assert one["loss"][0] - one["loss"][-1] > 0.02, "nothing was learned, so the curves say nothing"
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    # Each process fills its last batch up with images that it has already seen.
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-2)
    weights = [load_model(bundle).state_dict() for bundle in (one_bundle, two_bundle)]
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < 1e-3
    manifests = [open_bundle(bundle).manifest for bundle in (one_bundle, two_bundle)]
    assert manifests[1].temperature == pytest.approx(manifests[0].temperature, rel=1e-2)


def test_torchrun_wants_prepared_data(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", "train", "data=phantom"]
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--prepared" in done.stderr
