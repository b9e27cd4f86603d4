"""`pneumoctl pipeline submit|schedule|status|logs|compile` and kfp's own command against a server of its API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia import __version__
from pneumonia.pipelines.cluster import Kubeflow
from pneumonia.pipelines.run import compiled_pipeline
from tests.pipelines.kubeflow import FakeKubeflow, serve

pytest.importorskip("kfp", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")


@pytest.fixture
def kubeflow() -> Iterator[FakeKubeflow]:
    """A server without runs."""
    server = FakeKubeflow()
    with serve(server) as server.url:
        yield server


def pneumoctl(*arguments: str, host: str = "") -> subprocess.CompletedProcess[str]:
    """`pneumoctl pipeline ...` with the host in the environment."""
    command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", "pipeline", *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KF_PIPELINES")}
    environment |= {"KF_PIPELINES_ENDPOINT": host} if host else {}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_submit_sends_the_compiled_pipeline_with_typed_parameters(kubeflow: FakeKubeflow) -> None:
    given = ("gpus=1", "tensorrt=true", 'overrides=["training.max_steps=4"]', "recall_target=0.9", "namespace=42")
    done = pneumoctl("submit", *given, "--image", "registry.example/step:1", host=kubeflow.url)
    assert done.returncode == 0, done.stderr
    run = kubeflow.runs[json.loads(done.stdout)["run_id"]]
    assert run["runtime_config"]["parameters"] == {
        "gpus": 1,
        "tensorrt": True,
        "overrides": ["training.max_steps=4"],
        "recall_target": 0.9,
        "namespace": "42",
    }
    assert [item["display_name"] for item in kubeflow.experiments] == ["pneumonia"]
    assert run["experiment_id"] == kubeflow.experiments[0]["experiment_id"]
    spec, platform = run["pipeline_spec"]["pipeline_spec"], run["pipeline_spec"]["platform_spec"]
    assert spec["pipelineInfo"]["name"] == "pneumonia-train"
    assert "exec-train-2" in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    images = {item["container"]["image"] for item in spec["deploymentSpec"]["executors"].values()}
    assert images == {"registry.example/step:1", f"pneumonia-step-cuda:{__version__}"}


def test_kfps_own_command_takes_the_file(kubeflow: FakeKubeflow) -> None:
    package = str(compiled_pipeline("train"))
    kfp = "import sys; from kfp.cli.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", kfp, "--endpoint", kubeflow.url, "run", "submit", "-e", "pneumonia", "-f", package]
    done = subprocess.run([*command, "gpus=1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (run,) = kubeflow.runs.values()
    assert run["runtime_config"]["parameters"] == {"gpus": 1}
    assert set(run["pipeline_spec"]) == {"pipeline_spec", "platform_spec"}


def test_schedule_runs_one_at_a_time_and_catches_nothing_up(kubeflow: FakeKubeflow) -> None:
    done = pneumoctl("schedule", "--cron", "0 0 3 * * *", "--name", "nightly", "source=kaggle", host=kubeflow.url)
    assert done.returncode == 0, done.stderr
    made = kubeflow.schedules[json.loads(done.stdout)["schedule_id"]]
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert (made["display_name"], made["no_catchup"], made["max_concurrency"]) == ("nightly", True, 1)


def finished(kubeflow: FakeKubeflow, state: str, gate: str) -> str:
    """A run that got as far as its gate."""
    day = "2026-11-01T10"
    fetch = {"display_name": "fetch", "state": "SUCCEEDED", "pod_name": "fetch-pod"}
    fetch |= {"start_time": f"{day}:00:00Z", "end_time": f"{day}:01:00Z"}
    refused = {"display_name": "gate", "state": gate, "child_tasks": [{"pod_name": "gate-pod"}]}
    refused |= {"start_time": f"{day}:05:00Z", "end_time": f"{day}:05:09Z"}
    group = {"display_name": "exit-handler-1", "state": gate, "start_time": f"{day}:00:00Z"}
    group |= {"end_time": f"{day}:05:10Z", "child_tasks": [{"pod_name": "fetch-pod"}, {"pod_name": "gate-pod"}]}
    tasks = [group, refused | ({"error": {"message": "exit code 5"}} if gate == "FAILED" else {}), fetch]
    kubeflow.runs["r1"] = {
        "run_id": "r1", "display_name": "nightly", "state": state, "run_details": {"task_details": tasks},
    }  # fmt: skip
    kubeflow.logs |= {"gate-pod": "error: the gate refused this model\n", "fetch-pod": "fetch: done\n"}
    return "r1"


def test_status_and_logs_of_a_failed_run(kubeflow: FakeKubeflow) -> None:
    run_id = finished(kubeflow, "FAILED", "FAILED")
    done = pneumoctl("status", run_id, host=kubeflow.url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: step gate: exit code 5"
    tasks = json.loads(done.stdout)["tasks"]
    assert [(task["name"], task["seconds"]) for task in tasks] == [
        ("exit-handler-1", 310),
        ("fetch", 60),
        ("gate", 9),
    ]
    assert pneumoctl("logs", run_id, host=kubeflow.url).stdout == "error: the gate refused this model\n"
    assert pneumoctl("logs", run_id, "fetch", host=kubeflow.url).stdout == "fetch: done\n"


@pytest.mark.parametrize("version", ["v2beta1", "v1alpha1"])
def test_logs_come_from_the_api_server_where_no_ui_answers(kubeflow: FakeKubeflow, version: str) -> None:
    kubeflow.logs_at = f"/apis/{version}/runs/{{run}}/nodes/{{pod}}/log"
    run_id = finished(kubeflow, "FAILED", "FAILED")
    assert Kubeflow(kubeflow.url).log(run_id, "gate-pod") == "error: the gate refused this model\n"


def test_a_log_that_is_gone_is_one_line(kubeflow: FakeKubeflow) -> None:
    run_id = finished(kubeflow, "FAILED", "FAILED")
    kubeflow.logs.clear()
    done = pneumoctl("logs", run_id, host=kubeflow.url)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no log of pod gate-pod" in done.stderr


def test_status_of_a_run_that_goes_well(kubeflow: FakeKubeflow) -> None:
    done = pneumoctl("status", finished(kubeflow, "RUNNING", "RUNNING"), "--host", kubeflow.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "RUNNING"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status", "nowhere"], 3, "Run nowhere not found"),
        (["submit", "gpu=1"], 2, "no such parameter"),
        (["submit", "gpus=many"], 2, "expected a whole number"),
        (["submit", "deploy=1"], 2, "expected true or false"),
        (["submit", "--pipeline", "missing.yaml"], 3, "not a compiled pipeline"),
        (["submit", "--pipeline", "nosuch"], 4, "no compiled pipeline nosuch.yaml"),
        (["schedule", "--cron", "0 3 * * *"], 2, "six"),
    ],
)
def test_mistakes_are_one_line(kubeflow: FakeKubeflow, arguments: list[str], code: int, words: str) -> None:
    done = pneumoctl(*arguments, host=kubeflow.url)
    assert done.returncode == code, done.stderr
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in done.stderr
    assert kubeflow.runs == {}


def test_no_server_is_one_line_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        done = pneumoctl("status", "r1", host=host)
    assert done.returncode == 4
    assert time.monotonic() - began < 15
    (line,) = done.stderr.rstrip("\n").splitlines()
    assert line.startswith(f"error: {host}: no answer from Kubeflow Pipelines")
    assert "kubectl port-forward" in line
    unnamed = pneumoctl("status", "r1")
    assert unnamed.returncode == 2
    assert "--host" in unnamed.stderr


def test_compile_writes_the_packaged_pipeline_with_other_images(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    done = pneumoctl("compile", "train", "-o", str(out), "--image", "r.example/s:2", "--cuda-image", "r.example/g:2")
    assert done.returncode == 0, done.stderr
    text = out.read_text("utf-8")
    assert "image: r.example/s:2" in text
    assert "image: r.example/g:2" in text
    assert "pneumonia-step" not in text
    assert pneumoctl("compile", "train", "-o", str(out)).returncode == 0
    assert out.read_bytes() == compiled_pipeline("train").read_bytes()
