"""What goes wrong on a real backend: status names step, reason and exit code within a minute, and so does notify."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pneumonia.pipelines.cluster import Run
from tests.kubeflow.conftest import Backend, step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MINUTE = 60.0
SCHEDULED = 180.0
"""Time for the drivers before a step, which come before the cause."""


def failed(run: Run) -> bool:
    return any(item.state == "FAILED" for item in run.steps)


def test_a_mistyped_override_ends_the_run_in_its_first_step(backend: Backend) -> None:
    run_id = backend.submit('overrides=["data.no_such=1"]')
    run = backend.until(run_id, failed, SCHEDULED)
    check = step(run, "check")
    assert (check.exit_code, check.reason) == (2, "data.no_such: no such key; the nearest is data.source")
    run = backend.ended(run_id)
    done = backend.pneumoctl("status", run_id)
    assert done.returncode == 1
    assert "step check: failed: data.no_such: no such key" in done.stderr.splitlines()[-1]
    assert "failed: step check: failed: data.no_such: no such key" in backend.said(run)
    own = backend.pneumoctl("logs", run_id).stdout
    assert own == "error: data.no_such: no such key; the nearest is data.source\n"
    assert "launcher_v2.go" in backend.pneumoctl("logs", run_id, "--all").stdout


def test_an_image_that_is_not_there_is_what_the_run_waits_for(backend: Backend) -> None:
    run_id = backend.submit(image="nowhere.invalid/pneumonia-step:9")
    run = backend.until(run_id, lambda run: "waits for its image" in run.reason, SCHEDULED + MINUTE)
    assert "nowhere.invalid/pneumonia-step:9" in run.reason
    assert step(run, "check").state == "WAITING"
    assert backend.pneumoctl("status", run_id).returncode == 10
    backend.terminate(run_id)
    run = backend.until(run_id, lambda run: run.state == "TERMINATED", 2 * MINUTE)
    assert run.reason == "terminated by hand while check ran"
    assert backend.pneumoctl("status", run_id).returncode == 130


def test_a_gate_that_refuses_publishes_nothing(backend: Backend) -> None:
    run = backend.ended(backend.submit(gate='{"recall": 1.0}'))
    gate = step(run, "gate")
    assert (run.state, gate.state, gate.exit_code) == ("FAILED", "FAILED", 5)
    assert gate.reason.startswith("the gate refused this model")
    assert not [item for item in run.steps if item.name == "publish" and item.state == "SUCCEEDED"]
    assert "failed: step gate: failed: the gate refused this model" in backend.said(run)


def test_a_bucket_that_is_not_there(backend: Backend) -> None:
    run_id = backend.submit(release_root="s3://no-such-bucket-of-anyone/x")
    run = backend.until(run_id, failed, SCHEDULED)
    check = step(run, "check")
    assert check.exit_code == 4
    assert "no-such-bucket-of-anyone" in check.reason
    assert "failed: step check: failed: " in backend.said(backend.ended(run_id))


def test_gpus_that_no_node_has(backend: Backend, kubectl: Callable[..., str]) -> None:
    kubectl("apply", "-k", str(Path(__file__).parents[2] / "manifests/bases/runner-rbac"))
    images = ("--cuda-image", backend.image)
    run_id = backend.submit("gpus=1", 'gpu_node_selector={"pool": "of-nobody"}', options=images)
    run = backend.until(run_id, failed, SCHEDULED)
    check = step(run, "check")
    assert check.exit_code == 4
    assert "nodes can give a pod 1 nvidia.com/gpu, pool=of-nobody, 1 needed" in check.reason
    assert backend.ended(run_id).state == "FAILED"


def test_a_run_that_takes_longer_than_it_may(backend: Backend) -> None:
    run_id = backend.submit('overrides=["training.max_steps=2000"]', options=("--run-hours", "0.04"))
    run = backend.ended(run_id, 144 + 2 * MINUTE)
    assert run.state == "FAILED"
    assert run.reason == "took longer than the 144 s it may (--run-hours), and was ended while train ran"
    assert backend.pneumoctl("status", run_id).returncode == 1
    assert f"failed: {run.reason}" in backend.said(run)


def test_a_training_that_is_killed(backend: Backend, kubectl: Callable[..., str]) -> None:
    run_id = backend.submit("overrides=" + os.environ.get("KUBEFLOW_LONG", '["training.max_steps=2000"]'))
    run = backend.until(
        run_id, lambda run: any(item.name == "train" and item.state == "RUNNING" for item in run.steps), 600
    )
    # As the kernel does where memory is short: everything in the pod but its first process.
    kubectl("exec", step(run, "train").pod, "-c", "main", "--", "sh", "-c", "kill -9 -1 || true")
    run = backend.until(run_id, failed, MINUTE)
    train = step(run, "train")
    assert train.state == "FAILED"
    assert "137" in f"{train.reason} {train.exit_code}"
    run = backend.ended(run_id)
    assert "step train: failed" in backend.pneumoctl("status", run_id).stderr.splitlines()[-1]
    assert "failed: step train: failed" in backend.said(run)
