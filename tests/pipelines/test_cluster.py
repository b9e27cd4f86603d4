"""`pneumoctl pipeline submit|schedule|status|logs|compile` and kfp's own command against a server of its API."""

from __future__ import annotations

import base64
import gzip
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
from pneumonia.errors import UsageError
from pneumonia.pipelines.cluster import Kubeflow
from pneumonia.pipelines.nodes import steps_of
from pneumonia.pipelines.run import compiled_pipeline
from tests.pipelines.kubeflow import LAUNCHED, FakeKubeflow, ended, pod_of, serve, workflow

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
    given = (
        "gpus=1",
        "tensorrt=true",
        'overrides=["training.max_steps=4"]',
        'gate={"recall": 0.9}',
        "namespace=42",
        "deploy=false",
    )
    done = pneumoctl("submit", *given, "--image", "registry.example/step:1", "--images-on-nodes", host=kubeflow.url)
    assert done.returncode == 0, done.stderr
    run = kubeflow.runs[json.loads(done.stdout)["run_id"]]
    assert run["runtime_config"]["parameters"] == {
        "gpus": 1,
        "tensorrt": True,
        "overrides": ["training.max_steps=4"],
        "gate": {"recall": 0.9},
        "namespace": "42",
        "deploy": False,
    }
    assert [item["display_name"] for item in kubeflow.experiments] == ["pneumonia"]
    assert run["experiment_id"] == kubeflow.experiments[0]["experiment_id"]
    spec, platform = run["pipeline_spec"]["pipeline_spec"], run["pipeline_spec"]["platform_spec"]
    assert spec["pipelineInfo"]["name"] == "pneumonia-train"
    assert "exec-train" in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    images = {item["container"]["image"] for item in spec["deploymentSpec"]["executors"].values()}
    assert {image for image in images if "{{" not in image} == {"registry.example/step:1"}
    defaults = spec["root"]["inputDefinitions"]["parameters"]
    named = [defaults[name]["defaultValue"] for name in ("cpu_image", "cuda_image")]
    assert named == ["registry.example/step:1", f"pneumonia-step-cuda:{__version__}"]


@pytest.mark.parametrize("verb", ["submit", "create"])
def test_kfps_own_command_takes_the_file(kubeflow: FakeKubeflow, verb: str) -> None:
    package = str(compiled_pipeline("train"))
    kfp = "import sys; from kfp.cli.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", kfp, "--endpoint", kubeflow.url, "run", verb, "-e", "pneumonia", "-f", package]
    done = subprocess.run([*command, "gpus=1", 'tracking_uri="null"'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (run,) = kubeflow.runs.values()
    assert run["runtime_config"]["parameters"] == {"gpus": 1, "tracking_uri": "null"}
    assert set(run["pipeline_spec"]) == {"pipeline_spec", "platform_spec"}


def test_schedule_runs_one_at_a_time_and_catches_nothing_up(kubeflow: FakeKubeflow) -> None:
    done = pneumoctl(
        "schedule",
        "--cron",
        "0 0 3 * * *",
        "--name",
        "nightly",
        "source=kaggle",
        "--images-on-nodes",
        host=kubeflow.url,
    )
    assert done.returncode == 0, done.stderr
    made = kubeflow.schedules[json.loads(done.stdout)["schedule_id"]]
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert (made["display_name"], made["no_catchup"], made["max_concurrency"]) == ("nightly", True, 1)


def made(kubeflow: FakeKubeflow, state: str, *steps: tuple[str, str, str], history: tuple[str, ...] = ()) -> str:
    """A run with these steps, for `workflow`."""
    kubeflow.runs["r1"] = {
        "run_id": "r1", "display_name": "nightly", "state": state, "created_at": "2026-11-01T10:00:00Z",
        "finished_at": "1970-01-01T00:00:00Z" if state == "RUNNING" else "2026-11-01T10:05:00Z",
        "state_history": [{"state": item, "update_time": "2026-11-01T10:00:00Z"} for item in (*history, state)],
        # What a real server says here is no use: neither pods nor reasons.
        "run_details": {"task_details": [{"display_name": "executor(0)", "state": "FAILED"}, {}]},
    }  # fmt: skip
    kubeflow.workflows["r1"] = workflow(*steps)
    return "r1"


def refused(kubeflow: FakeKubeflow) -> str:
    """A run that got as far as its gate."""
    gate, late = ("gate", "Failed", "main: Error (exit code 1)"), ("publish", "Omitted", "omitted: depends not met")
    run_id = made(kubeflow, "FAILED", ("fetch", "Succeeded", ""), ("train", "cached", ""), gate, late)
    said = {"fetch": "fetch: done\n", "gate": "gate: reading\nerror: the gate refused this model\n"}
    for step, code in (("fetch", 0), ("gate", 5)):
        pod = pod_of(kubeflow.workflows[run_id], step)
        kubeflow.logs[pod] = LAUNCHED + said[step] + (ended(code) if code else "")
    return run_id


def test_status_names_step_reason_and_exit_code(kubeflow: FakeKubeflow) -> None:
    done = pneumoctl("status", refused(kubeflow), host=kubeflow.url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: step gate: failed: the gate refused this model (exit code 5)"
    run = json.loads(done.stdout)
    assert (run["state"], run["seconds"]) == ("FAILED", 300)
    assert [(step["name"], step["state"], step["seconds"], step["exit_code"]) for step in run["steps"]] == [
        ("fetch", "SUCCEEDED", 4, None),
        ("train", "CACHED", None, None),
        ("gate", "FAILED", 4, 5),
        ("publish", "OMITTED", None, None),
    ]


def test_logs_are_the_steps_own_lines(kubeflow: FakeKubeflow) -> None:
    run_id = refused(kubeflow)
    own = pneumoctl("logs", run_id, host=kubeflow.url).stdout
    assert own == "gate: reading\nerror: the gate refused this model\n"
    assert pneumoctl("logs", run_id, "fetch", host=kubeflow.url).stdout == "fetch: done\n"
    everything = pneumoctl("logs", run_id, "--all", host=kubeflow.url).stdout
    assert everything == kubeflow.logs[pod_of(kubeflow.workflows[run_id], "gate")]


@pytest.mark.parametrize("where", ["/k8s/pod/logs", "/apis/v1alpha1/runs/{run}/nodes/{pod}/log"])
def test_logs_come_from_the_api_server_or_the_user_interface(kubeflow: FakeKubeflow, where: str) -> None:
    kubeflow.logs_at = where
    run_id = refused(kubeflow)
    gate = next(step for step in steps_of(kubeflow.workflows[run_id]) if step.name == "gate")
    assert "the gate refused this model" in Kubeflow(kubeflow.url).log(run_id, gate)


def test_a_log_that_is_gone_is_one_line(kubeflow: FakeKubeflow) -> None:
    run_id = refused(kubeflow)
    kubeflow.logs.clear()
    done = pneumoctl("logs", run_id, host=kubeflow.url)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no log of step gate" in done.stderr
    status = pneumoctl("status", run_id, host=kubeflow.url)
    assert status.stderr.splitlines()[-1] == "error: step gate: failed: main: Error (exit code 1)"


BACKOFF = 'ImagePullBackOff: Back-off pulling image "nowhere.example/s:9"'


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([("fetch", "Succeeded", ""), ("train", "Running", "")], "run r1 is running"),
        ([("fetch", "Pending", BACKOFF)], f"step fetch: waiting: waits for its image: {BACKOFF}"),
        ([("fetch", "Pending", "Unschedulable: 0/1 nodes")], "step fetch: waiting: waits for a node: Unschedulable"),
        ([("fetch", "driving", "")], "step fetch: waiting: waits for Kubeflow's driver"),
        ([], " s: it waits for Kubeflow's workflow controller"),
    ],
)
def test_status_of_a_run_that_goes_on_says_what_it_waits_for(
    kubeflow: FakeKubeflow, steps: list[tuple[str, str, str]], words: str
) -> None:
    done = pneumoctl("status", made(kubeflow, "RUNNING", *steps), "--host", kubeflow.url)
    assert done.returncode == 10
    assert words in done.stderr.splitlines()[-1]
    assert "None" not in [step["name"] for step in json.loads(done.stdout)["steps"]]


def test_a_terminated_run_is_called_that(kubeflow: FakeKubeflow) -> None:
    fetch = ("fetch", "Failed", "Step exceeded its deadline")
    run_id = made(kubeflow, "FAILED", fetch, history=("PENDING", "RUNNING", "CANCELING"))
    done = pneumoctl("status", run_id, host=kubeflow.url)
    assert (done.returncode, json.loads(done.stdout)["state"]) == (130, "TERMINATED")
    assert done.stderr.splitlines()[-1] == "error: terminated by hand while fetch ran"


def test_wait_ends_with_the_run_or_with_its_time(kubeflow: FakeKubeflow) -> None:
    run_id = made(kubeflow, "SUCCEEDED", ("fetch", "Succeeded", ""))
    done = pneumoctl("status", run_id, "--wait", host=kubeflow.url)
    assert (done.returncode, done.stderr) == (0, "pipeline: step fetch: succeeded\n")
    made(kubeflow, "RUNNING", ("fetch", "Running", ""))
    assert pneumoctl("status", run_id, "--wait", "--timeout", "0", host=kubeflow.url).returncode == 10


def test_a_step_killed_from_outside_keeps_the_nodes_message(kubeflow: FakeKubeflow) -> None:
    run_id = made(kubeflow, "FAILED", ("train", "Failed", "OOMKilled (exit code 137)"))
    kubeflow.logs[pod_of(kubeflow.workflows[run_id], "train")] = LAUNCHED + "train: step 12 of 400\n"
    (step,) = Kubeflow(kubeflow.url).run(run_id).steps
    assert (step.reason, step.exit_code) == ("OOMKilled (exit code 137)", None)


def test_a_workflow_that_argo_packed_is_read(kubeflow: FakeKubeflow) -> None:
    plain = workflow(("fetch", "Succeeded", ""))
    nodes = gzip.compress(json.dumps(plain["status"]["nodes"]).encode())
    packed = {"status": {"compressedNodes": base64.b64encode(nodes).decode()}}
    assert steps_of(packed) == steps_of(plain) != ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["deploy=false"], "no registry in the name"),
        (["deploy=false", "--image", "somebody/step:1"], "somebody/step:1: no registry"),
        (["deploy=false", "gpus=1", "--image", "r.example/s:1"], "pneumonia-step-cuda"),
        (["--images-on-nodes"], "source=phantom with deploy=true"),
    ],
)
def test_what_cannot_end_well_is_refused_before_submission(
    kubeflow: FakeKubeflow, arguments: list[str], words: str
) -> None:
    for command in (["submit"], ["schedule", "--cron", "0 0 3 * * *"]):
        done = pneumoctl(*command, *arguments, host=kubeflow.url)
        assert done.returncode == 2
        assert words in done.stderr
    assert (kubeflow.runs, kubeflow.schedules) == ({}, {})


@pytest.mark.parametrize("image", ["r.example/s:1", "localhost:5000/s", "localhost/s", "r.example/a/s@sha256:0"])
def test_an_image_with_a_registry_is_submitted(kubeflow: FakeKubeflow, image: str) -> None:
    done = pneumoctl("submit", "deploy=false", "--image", image, host=kubeflow.url)
    assert done.returncode == 0, done.stderr


def test_cookie_and_certificate_reach_the_client(
    kubeflow: FakeKubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KF_PIPELINES_COOKIE", "oauth2_proxy_kubeflow=x")
    Kubeflow(kubeflow.url).submit(compiled_pipeline("train"), {}, "pneumonia")
    assert kubeflow.cookies == {"oauth2_proxy_kubeflow=x"}
    monkeypatch.setenv("KF_PIPELINES_CA", str(tmp_path / "ca.pem"))
    with pytest.raises(UsageError, match=r"KF_PIPELINES_CA=.*no such file"):
        Kubeflow(kubeflow.url)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status", "nowhere"], 3, "Run nowhere not found"),
        (["submit", "gpu=1"], 2, "no such parameter"),
        (["submit", "gpus=many"], 2, "expected a whole number"),
        (["submit", "deploy=1"], 2, "expected true or false"),
        (["submit", "--pipeline", "missing.yaml"], 3, "not a compiled pipeline"),
        (["submit", "--pipeline", "nosuch"], 4, "no compiled pipeline nosuch.yaml"),
        (["schedule", "--cron", "0 3 * * *", "deploy=false", "--images-on-nodes"], 2, "six"),
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
    assert "defaultValue: r.example/g:2" in text
    assert "pneumonia-step" not in text
    before = out.read_bytes()
    refused = pneumoctl("compile", "train", "gpus=1", "-o", str(out))
    assert (refused.returncode, out.read_bytes()) == (2, before)
    assert "gpus: not a volume" in refused.stderr
    assert pneumoctl("compile", "train", "-o", str(out)).returncode == 0
    assert out.read_bytes() == compiled_pipeline("train").read_bytes()
