"""What a compiled pipeline is given before it goes to Kubeflow, and what a step takes from its pod."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pneumonia.errors import UsageError
from pneumonia.pipelines.containers import chosen_image
from pneumonia.pipelines.package import adapt
from pneumonia.pipelines.run import compiled_pipeline
from pneumonia.pipelines.step import take_secrets


def mounts(package: Path) -> dict[str, list[tuple[str, str]]]:
    """Claims with their places by executor."""
    _, platform = yaml.safe_load_all(package.read_text("utf-8"))
    asked: dict[str, Any] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): [(item["constant"], item["mountPath"]) for item in own["pvcMount"]]
        for name, own in asked.items()
        if "pvcMount" in own
    }


def test_named_volumes_are_mounted_where_they_are_used_and_no_others(tmp_path: Path) -> None:
    source, out = compiled_pipeline("train"), tmp_path / "mine.yaml"
    assert adapt(source, {"data_volume": "", "gpus": 1}, out) == source
    assert not out.exists()
    assert mounts(source) == {}
    found = mounts(adapt(source, {"data_volume": "xrays", "release_volume": "releases"}, out))
    release = ("releases", "/release-volume")
    data = ("xrays", "/data")
    assert found == {
        "check": [data, release], "fetch": [data], "prepare": [data], "deploy": [data], "publish": [release],
    }  # fmt: skip


def test_a_file_with_volumes_says_so_and_takes_others(tmp_path: Path) -> None:
    first = adapt(compiled_pipeline("train"), {"data_volume": "one"}, tmp_path / "first.yaml")
    spec = next(iter(yaml.safe_load_all(first.read_text("utf-8"))))
    assert spec["root"]["inputDefinitions"]["parameters"]["data_volume"]["defaultValue"] == "one"
    second = adapt(first, {"data_volume": "two"}, tmp_path / "second.yaml")
    assert {claim for found in mounts(second).values() for claim, _ in found} == {"two"}


def limit(package: Path) -> Any:
    _, platform = yaml.safe_load_all(package.read_text("utf-8"))
    return platform["platforms"]["kubernetes"]["pipelineConfig"]["activeDeadlineSeconds"]


def test_a_run_has_a_limit_and_takes_another(tmp_path: Path) -> None:
    source = compiled_pipeline("train")
    assert limit(source) == 96 * 3600
    assert limit(adapt(source, {"data_volume": "x"}, tmp_path / "same.yaml")) == 96 * 3600
    assert limit(adapt(source, {}, tmp_path / "half.yaml", 0.5)) == 1800
    assert limit(adapt(compiled_pipeline("score"), {}, tmp_path / "score.yaml", 2)) == 7200
    for hours in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="--run-hours"):
            adapt(source, {}, tmp_path / "none.yaml", hours)


def test_a_step_makes_its_environment_of_mounted_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s3").mkdir()
    (tmp_path / "mlflow").mkdir()
    files = {"s3/AWS_ACCESS_KEY_ID": "id", "s3/AWS_SECRET_ACCESS_KEY": "mounted", "mlflow/MLFLOW_TRACKING_TOKEN": "t\n",
             "s3/PATH": "/nowhere", "s3/LD_PRELOAD": "x.so"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in ("AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_TOKEN", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")  # So that the test's end takes away what is set now.
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "set by hand")
    path = os.environ["PATH"]
    take_secrets(tmp_path)
    assert (os.environ["AWS_ACCESS_KEY_ID"], os.environ["MLFLOW_TRACKING_TOKEN"]) == ("id", "t")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "set by hand"
    assert os.environ["PATH"] == path
    assert "LD_PRELOAD" not in os.environ


def test_no_secrets_are_no_error(tmp_path: Path) -> None:
    take_secrets(tmp_path / "nowhere")


def test_an_image_that_another_step_chose_is_looked_up() -> None:
    command = ["sh", "-c", "x", "--executor_input", '{"inputs": {"parameterValues": {"check-train_image": "s:1"}}}']
    assert chosen_image("{{$.inputs.parameters['check-train_image']}}", command) == "s:1"
    assert chosen_image("pneumonia-step:1", command) == "pneumonia-step:1"
