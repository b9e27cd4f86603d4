"""A run survives interruption, the best epoch is what the bundle gets, and test images have no say in anything."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from pneumonia import contract
from pneumonia.architecture import load_model
from pneumonia.bundle import open_bundle
from pneumonia.core.calibration import fit_temperature_and_offset
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.errors import ServerUnavailable
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.export.to_onnx import export_onnx
from pneumonia.training.averaging import AVERAGE_FILE, EVERY, WeightAverage
from pneumonia.training.dataset import predict_logits
from pneumonia.training.tracking import NoTracker
from pneumonia.training.train import make_trainer, run, train
from tests.phantoms import smoke_config

STEPS = ("training.max_steps=-1", "training.num_train_epochs=3", "training.per_device_train_batch_size=64",
         "training.ema_decay=0.9", "training.precision=fp32")  # fmt: skip


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("architecture", ["vit_conv_stem", "vit"])
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(
    architecture: str, prepared: PreparedData, tmp_path: Path
) -> None:
    config = smoke_config(tmp_path, *STEPS, f"model.architecture={architecture}")
    whole = make_trainer(config, prepared, tmp_path / "whole", NoTracker())
    whole.train()
    # The last checkpoint is thrown away, as if the run had died in its last epoch.
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    broken = tmp_path / "broken"
    broken.mkdir()
    early = make_trainer(config, prepared, broken, NoTracker())
    early.args.save_total_limit = None
    early.add_callback(_StopAfterTwoEpochs())
    early.train()
    resumed = make_trainer(config, prepared, broken, NoTracker())
    last = max(broken.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert int(last.name.split("-")[1]) < int(checkpoints[-1].name.split("-")[1])
    resumed._load_from_checkpoint(str(last))
    assert _same(_weights(resumed.model), load_file(last / contract.WEIGHTS_FILE) | _not_saved(resumed.model, last))
    resumed = make_trainer(config, prepared, broken, NoTracker())
    resumed.train(resume_from_checkpoint=str(last))
    assert resumed.state.global_step == whole.state.global_step
    assert _same(_weights(resumed.model), _weights(whole.model))
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def _not_saved(model: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    saved = load_file(folder / contract.WEIGHTS_FILE)
    return {name: value for name, value in model.state_dict().items() if name not in saved}


class _SignalAtStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("part_of_epoch", [0.5, 1.0])
def test_ctrl_c_keeps_a_checkpoint_that_leads_to_the_same_weights(
    part_of_epoch: float, prepared: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Dropout draws random numbers at every step, so the generators have to go on as well.
    config = smoke_config(tmp_path, *STEPS, "model.hidden_dropout=0.1")
    whole = make_trainer(config, prepared, tmp_path / "whole", NoTracker())
    run(whole, None)
    epoch = whole.state.max_steps // 3
    step = epoch + int(part_of_epoch * epoch)
    stopped = make_trainer(config, prepared, tmp_path / "stopped", NoTracker())
    stopped.add_callback(_SignalAtStep(step))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, None)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "go on with training.resume=true" in capsys.readouterr().err
    assert (tmp_path / "stopped" / f"checkpoint-{stopped.state.global_step}" / contract.WEIGHTS_FILE).is_file()
    assert stopped.state.global_step == step
    resumed = make_trainer(config, prepared, tmp_path / "stopped", NoTracker())
    run(resumed, str(tmp_path / "stopped" / f"checkpoint-{stopped.state.global_step}"))
    assert resumed.state.global_step == whole.state.global_step
    assert _same(_weights(resumed.model), _weights(whole.model))
    assert resumed.state.best_global_step == whole.state.best_global_step


class _StopAfterTwoEpochs(TrainerCallback):
    def on_epoch_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        control.should_training_stop = state.epoch >= 2  # type: ignore[attr-defined]


def test_the_best_epoch_is_what_remains_exactly(prepared: PreparedData, tmp_path: Path) -> None:
    config = smoke_config(tmp_path, *STEPS)
    trainer = make_trainer(config, prepared, tmp_path / "run", NoTracker())
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    average = load_file(best / AVERAGE_FILE)
    kept = {name: value for name, value in _weights(trainer.model).items() if value.dtype.is_floating_point}
    assert _same(kept, average)
    assert any(not torch.equal(average[name], value) for name, value in load_file(best / contract.WEIGHTS_FILE).items()
               if name in average)  # fmt: skip
    scores = {entry["step"]: entry["eval_auroc"] for entry in trainer.state.log_history if "eval_auroc" in entry}
    assert trainer.state.best_metric == max(scores.values())
    assert best.name == f"checkpoint-{max(scores, key=lambda step: (scores[step], -step))}"


def test_an_average_without_memory_is_the_model_and_one_with_memory_lags() -> None:
    model = torch.nn.Linear(3, 3)
    exact, slow = WeightAverage(model, 0.0), WeightAverage(model, 0.9)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    exact.update(1)
    slow.update(1)
    assert torch.allclose(exact.values["weight"], model.weight)
    # (1 + 1) / (10 + 1) of the past stays after the first step.
    assert torch.allclose(slow.values["weight"], start + 9 / 11)
    slow.update(2 * EVERY - 1)
    assert torch.allclose(slow.values["weight"], start + 9 / 11)
    slow.update(2 * EVERY)
    # And (1 + 8) / (10 + 8) of it after each of the steps 5 to 8, which are taken in as one.
    averaged = start + 1 - 2 / 11 * (9 / 18) ** 4
    assert torch.allclose(slow.values["weight"], averaged)
    with slow.swapped_in(model):
        assert torch.allclose(model.weight, averaged)
    assert torch.allclose(model.weight, start + 1)


def test_a_bundle_says_what_it_is_and_answers_as_it_was_validated(
    prepared: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = smoke_config(tmp_path)
    bundle = train(config, prepared.path, tmp_path / "run" / "bundle")
    assert open_bundle(bundle.path).digest == bundle.digest
    manifest = bundle.manifest
    assert manifest.synthetic
    assert manifest.data["digest"] == prepared.manifest["digest"]
    assert manifest.config["training"]["max_steps"] == 4
    # Bundles travel; the folders of the machine that trained them stay there.
    assert str(tmp_path) not in (bundle.path / contract.BUNDLE_MANIFEST).read_text()
    assert set(manifest.files) == {contract.WEIGHTS_FILE, contract.MODEL_CONFIG_FILE}
    rows = prepared.indices("val")
    logits = predict_logits(load_model(bundle.path), prepared, rows)
    temperature, offset = fit_temperature_and_offset(logits, prepared.labels[rows])
    assert manifest.temperature == pytest.approx(temperature, rel=1e-3)
    # The offset is in the saved weights already, so the mean probability is the share of PNEUMONIA.
    assert abs(offset) < 1e-3 * np.abs(logits).max()
    # All are right, and so few are no proof.
    recall = manifest.metrics["val"]["recall"]
    assert recall["value"] == 1
    assert recall["low"] < manifest.recall_target
    assert "patients of validation cannot show a recall of 0.95: if all are right" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text().startswith("data:")
    assert any("eval_auroc" in entry for entry in json.loads((tmp_path / "run" / "history.json").read_text()))


def test_test_images_have_no_say_in_weights_temperature_or_threshold(prepared: PreparedData, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(prepared.path, other)
    changed = np.load(other / contract.PIXELS_FILE, mmap_mode="r+")
    rows = prepared.indices("test")
    changed[rows] = 255 - changed[rows]
    changed.flush()
    index = (other / contract.INDEX_FILE).read_text().splitlines()
    swap = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}
    for row in rows:
        cells = index[row + 1].split(",")
        cells[1] = swap[cells[1]]
        index[row + 1] = ",".join(cells)
    (other / contract.INDEX_FILE).write_text("\n".join(index) + "\n")
    assert (load_prepared(other).labels[rows] != prepared.labels[rows]).all()
    config = smoke_config(tmp_path)
    first = train(config, prepared.path, tmp_path / "a" / "bundle").manifest
    second = train(config, other, tmp_path / "b" / "bundle").manifest
    assert (first.temperature, first.threshold) == (second.temperature, second.threshold)
    assert first.files == second.files


def test_an_unreachable_tracking_server_is_noticed_before_training(prepared: PreparedData, tmp_path: Path) -> None:
    config = smoke_config(tmp_path)
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri="http://127.0.0.1:9"))
    with pytest.raises(ServerUnavailable, match=r"tracking\.uri=null"):
        train(config, prepared.path, tmp_path / "run" / "bundle")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_local_run_is_recorded_from_parameters_to_bundle(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("KFP_POD_NAME", "pneumonia-train-abcde-system-container-impl-1")
    monkeypatch.setenv(contract.KUBEFLOW_RUN_ENV, "0b7c-of-the-run")
    config = smoke_config(tmp_path, "tracking.uri=local")
    bundle = train(config, prepared.path, tmp_path / "run" / "bundle")
    metrics = evaluate(config, bundle.path, prepared.path, tmp_path / "evaluation")
    export_onnx(config, bundle.path, tmp_path / "evaluation", prepared.path, tmp_path / "models")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    # One run: the later steps find that of the training.
    (run,) = mlflow.search_runs(experiment_names=["pneumonia"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.max_steps"] == "4"
    assert run.data.tags["synthetic"] == "True"
    assert run.data.tags["kubeflow.pod"] == "pneumonia-train-abcde-system-container-impl-1"
    assert run.data.tags["kubeflow.run"] == "0b7c-of-the-run"
    assert open_bundle(tmp_path / "models").manifest.kubeflow_run == "0b7c-of-the-run"
    assert {"eval_auroc", "val_recall"} <= set(run.data.metrics)
    recall = metrics["test"]["recall"]
    kept = {end: run.data.metrics[f"test_recall{end}"] for end in ("", "_low", "_high")}
    assert kept == {"": recall["value"], "_low": recall["low"], "_high": recall["high"]}
    artifacts = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path / "kept")))
    assert (artifacts / "evaluation" / contract.REPORT_FILE).is_file()
    # Names of images stay in the run's folder unless they are asked for.
    assert not (artifacts / "evaluation" / contract.PREDICTIONS_FILE).exists()
    plots = {path.stem for path in (artifacts / "evaluation" / contract.PLOTS_DIR).iterdir()}
    assert plots == {"roc", "precision_recall", "calibration", "confusion"}
    assert open_bundle(artifacts / "bundle").digest == open_bundle(tmp_path / "models").digest
