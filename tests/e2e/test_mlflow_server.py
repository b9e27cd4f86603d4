"""A run is recorded by a real MLflow server, the one that `make mlflow` starts, under tracking.uri=http://..."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pneumonia import contract
from pneumonia.bundle import open_bundle
from pneumonia.cli.demo import free_ports
from pneumonia.data.prepare import PreparedData
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.training.train import train
from tests.phantoms import smoke_config

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"


class Server(NamedTuple):
    """Its address, and the group of its processes."""

    url: str
    group: int


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """The command of `make mlflow` with its records under `folder`."""
    (port,) = free_ports(1)
    recipe = MAKEFILE.read_text().partition("\nmlflow: ")[2].partition("\n\n")[0].replace("\\\n", " ").splitlines()
    command = next(line for line in recipe if "mlflow ui" in line).strip()
    for name, value in {"BIN": Path(sys.executable).parent, "CURDIR": folder, "MLFLOW_PORT": port}.items():
        command = command.replace(f"$({name})", str(value))
    (folder / "runs").mkdir()
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, shell=True, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(240):
                assert process.poll() is None, (folder / "server.log").read_text()
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
                    break
                time.sleep(0.5)
            yield Server(url, process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.mark.slow
def test_a_server_gets_parameters_figures_and_report(prepared: PreparedData, tmp_path: Path) -> None:
    import mlflow

    with mlflow_server(tmp_path) as (url, _):
        config = smoke_config(tmp_path, f"tracking.uri={url}")
        bundle = train(config, prepared.path, tmp_path / "run" / "bundle")
        evaluate(config, bundle.path, prepared.path, tmp_path / "evaluation")
        mlflow.set_tracking_uri(url)
        (run,) = mlflow.search_runs(experiment_names=["pneumonia"], output_format="list")
        assert run.data.params["model.name"] == "pneumonia-smoke"
        assert {"eval_auroc", "test_recall", "test_recall_low"} <= set(run.data.metrics)
        kept = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path=f"evaluation/{contract.REPORT_FILE}", dst_path=str(tmp_path / "kept")
        )
        assert "Synthetic data" in Path(kept).read_text()


@pytest.mark.slow
def test_a_server_that_is_lost_in_mid_training_does_not_cost_the_model(prepared: PreparedData, tmp_path: Path) -> None:
    config = ["experiment=smoke", "training.max_steps=-1", "training.num_train_epochs=8", f"output_dir={tmp_path}/out"]
    with mlflow_server(tmp_path) as (url, group):
        command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", "train", *config,
                   f"tracking.uri={url}", "--prepared", str(prepared.path)]  # fmt: skip
        environment = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "train: epoch 2.0" in line:
                    os.killpg(group, signal.SIGKILL)
        assert process.returncode == 0, lines
    assert len([line for line in lines if line.startswith("warning: tracking.uri=")]) == 1
    assert not any("Traceback" in line for line in lines)
    assert any("epoch 8.0" in line for line in lines)
    assert open_bundle(tmp_path / "out" / "pneumonia-smoke" / "bundle").manifest.synthetic
