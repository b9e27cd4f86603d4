"""A real Kubeflow Pipelines, named by the environment; everything here skips with a reason where there is none.

KUBEFLOW_HOST: its API, such as http://127.0.0.1:8888. PNEUMONIA_STEP_IMAGE: a step image that its nodes have or can
pull. KUBEFLOW_S3: address of an object store as the pods reach it, with the bucket KUBEFLOW_S3_BUCKET (`pneumonia`);
its keys are in the Secret `pneumonia-s3` of the runs' namespace, KUBEFLOW_NAMESPACE (`kubeflow`). KUBECTL: how kubectl
is called, for the test that kills a pod.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pneumonia.pipelines.cluster import Kubeflow, Run
from pneumonia.pipelines.nodes import Step

NAMESPACE = os.environ.get("KUBEFLOW_NAMESPACE", "kubeflow")
OPEN_GATE = json.dumps(
    dict.fromkeys(("accuracy", "precision", "recall", "f1", "recall_low"), 0)
    | dict.fromkeys(("stress_auroc", "stress_recall", "stress_specificity"))
)


@dataclass
class Backend:
    """The backend, and what is submitted to it. root: where releases go. seed: of data that no other session has."""

    host: str
    image: str
    s3: str
    root: str
    seed: int
    runs: list[str] = field(default_factory=list)

    def pneumoctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`pneumoctl pipeline ...`."""
        command = [sys.executable, "-c", "from pneumonia.cli.app import main; main()", "pipeline", *arguments]
        environment = {**os.environ, "KF_PIPELINES_ENDPOINT": self.host}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    def submit(self, *parameters: str, image: str = "", options: tuple[str, ...] = (), **settings: str) -> str:
        """A run of the training pipeline from phantoms; its id. settings: instead of those given here."""
        given = {
            "experiment": "smoke", "source": "phantom", "deploy": "false", "tracking_uri": "null",
            "release_root": self.root, "s3_endpoint": self.s3, **settings,
        }  # fmt: skip
        named = [f"{key}={value}" for key, value in given.items()]
        images = ("--image", image or self.image, "--images-on-nodes")
        done = self.pneumoctl("submit", *named, *parameters, *images, *options)
        assert done.returncode == 0, done.stderr
        self.runs.append(json.loads(done.stdout)["run_id"])
        return self.runs[-1]

    def run(self, run_id: str) -> Run:
        """The run so far."""
        return Kubeflow(self.host).run(run_id)

    def until(self, run_id: str, done: Callable[[Run], bool], timeout_s: float) -> Run:
        """The run once `done` says so; fails where it does not in time."""
        end = time.monotonic() + timeout_s
        while not done(run := self.run(run_id)):
            assert time.monotonic() < end, f"not in {timeout_s:.0f} s: {run}"
            time.sleep(5)
        return run

    def ended(self, run_id: str, timeout_s: float = 1200) -> Run:
        """The run at its end."""
        return Kubeflow(self.host).wait(run_id, timeout_s)

    def terminate(self, run_id: str) -> None:
        """End the run by hand."""
        Kubeflow(self.host)._client.terminate_run(run_id)

    def said(self, run: Run) -> str:
        """What the run's exit handler said."""
        log = Kubeflow(self.host).log(run.run_id, step(run, "notify"))
        (line,) = [line for line in log.splitlines() if line.startswith("notify: pneumonia: ")]
        return line


def step(run: Run, name: str) -> Step:
    """The run's step of this name."""
    found = [item for item in run.steps if item.name == name]
    assert found, f"{name} is not among {[item.name for item in run.steps]}"
    return found[-1]


@pytest.fixture(scope="session")
def backend() -> Iterator[Backend]:
    """The backend; every run that a test left is terminated."""
    pytest.importorskip("kfp", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")
    names = ("KUBEFLOW_HOST", "PNEUMONIA_STEP_IMAGE", "KUBEFLOW_S3")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        pytest.skip(f"no Kubeflow Pipelines named; set {', '.join(missing)}")
    bucket = os.environ.get("KUBEFLOW_S3_BUCKET", "pneumonia")
    chosen = uuid.uuid4()
    root = f"s3://{bucket}/test-{chosen.hex[:8]}"
    made = Backend(*(os.environ[name] for name in names), root=root, seed=chosen.int % 100_000)
    yield made
    for run_id in made.runs:
        if not made.run(run_id).state.startswith(("SUCCEEDED", "FAILED", "TERMINAT")):
            made.terminate(run_id)


@pytest.fixture(scope="session")
def kubectl() -> Callable[..., Any]:
    """`kubectl ... -o json` of the runs' namespace, as what it prints; skips where KUBECTL is not set."""
    if not os.environ.get("KUBECTL"):
        pytest.skip("KUBECTL is not set; expected such as KUBECTL=kubectl, with the cluster's kubeconfig")

    def call(*arguments: str) -> str:
        command = [*os.environ["KUBECTL"].split(), "-n", NAMESPACE, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    return call
