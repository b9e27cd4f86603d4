"""A TrainJob is valid for its CRD, followed to its end, and leaves nothing behind whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pneumonia.bundle import Bundle
from pneumonia.errors import MissingPrerequisite, PneumoniaError
from pneumonia.training.trainjob import JobShape, train_job, train_on_cluster
from tests.pipelines.kubeflow import serve
from tests.training.trainer_api import FakeTrainer, trains

client = pytest.importorskip(
    "kubernetes.client", reason="kubernetes is not installed; pip install 'pneumonia[pipelines]'"
)
SHAPE = JobShape(2, 4, "registry.example/step:1", "shared", ({"key": "gpu", "operator": "Exists"},), {"gpu": "a100"})
CRD = Path(__file__).resolve().parents[3] / "shared" / "schemas" / "trainer.kubeflow.org_trainjobs.yaml"


def test_the_object_is_what_the_crd_takes() -> None:
    if not CRD.is_file():
        pytest.skip("no ../shared/schemas/trainer.kubeflow.org_trainjobs.yaml to check against")
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    (version,) = yaml.safe_load(CRD.read_text("utf-8"))["spec"]["versions"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    job = train_job("pneumonia-train-0", ["experiment=local"], SHAPE, "folder")
    jsonschema.Draft202012Validator(schema).validate(job)
    for path in (("trainer", "nodes"), ("runtimePatches", 0, "trainingRuntimeSpec", "nonsense")):
        broken = train_job("pneumonia-train-0", [], SHAPE, "folder")
        inner: Any = broken["spec"]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = 1
        assert not jsonschema.Draft202012Validator(schema).is_valid(broken), f"the check lets {path} pass"


def closed(schema: Any) -> Any:
    """The schema, refusing fields that it does not know, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(item) for key, item in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
        if set(schema["properties"]) >= {"apiVersion", "kind", "metadata"}:
            found["properties"]["metadata"] = {}
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found


def test_the_job_trains_by_torchrun_with_the_shape_that_was_asked_for() -> None:
    spec = train_job("name", ["experiment=local", "model.learning_rate=1e-4"], SHAPE, "folder")["spec"]
    trainer = spec["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 4, "registry.example/step:1")
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "4"}
    assert trainer["command"][:4] == ["torchrun", "--no-python", "pneumoctl", "train"]
    assert "model.learning_rate=1e-4" in trainer["command"]
    (job,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert [item["key"] for item in pod["tolerations"]] == ["nvidia.com/gpu", "gpu"]
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {"/workspace", "/dev/shm"}


@pytest.fixture
def prepared_folder(tmp_path: Path) -> Path:
    """What stands for a prepared data set: the job's nodes read it, this side only carries it."""
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "prepared.json").write_text("{}")
    return tmp_path / "prepared"


def run(server: FakeTrainer, prepared: Path, workspace: Path, out: Path) -> Bundle:
    """Train through `server`."""
    with serve(server) as url:
        api = client.ApiClient(client.Configuration(host=url))
        return train_on_cluster(
            ["experiment=local"], prepared, out, SHAPE, workspace=workspace, namespace="ml", api=api, poll_s=0.02
        )


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """The shared volume, empty again at the end of every test."""
    (tmp_path / "workspace").mkdir()
    yield tmp_path / "workspace"
    assert list((tmp_path / "workspace").iterdir()) == [], "files are left on the shared volume"


def test_a_job_that_completes_gives_its_bundle_and_its_log(
    bundle: Bundle, prepared_folder: Path, workspace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = FakeTrainer("Complete", ["train: step 1/2", "train: step 2/2"], trains(workspace, bundle.path))
    server.away = 1
    made = run(server, prepared_folder, workspace, tmp_path / "out")
    assert made.digest == bundle.digest
    (job,) = server.created
    assert server.deleted == [job["metadata"]["name"]]
    err = capfd.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("train: step")] == [
        "train: step 1/2",
        "train: step 2/2",
    ]


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_log_that_cannot_be_read_costs_no_training(
    bundle: Bundle,
    prepared_folder: Path,
    workspace: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    status: int,
) -> None:
    server = FakeTrainer("Complete", ["one", "two", "three"], trains(workspace, bundle.path))
    server.no_log = status
    assert run(server, prepared_folder, workspace, tmp_path / "out").digest == bundle.digest
    assert capfd.readouterr().err.count("no log for now") == 1


def test_a_job_that_fails_says_why_and_goes(prepared_folder: Path, workspace: Path, tmp_path: Path) -> None:
    server = FakeTrainer("Failed", ["train: step 1/2", "error: no threshold meets the recall target"])
    with pytest.raises(PneumoniaError, match=r"TrainJob \S+ failed: no threshold meets the recall target"):
        run(server, prepared_folder, workspace, tmp_path / "out")
    assert server.deleted == [server.created[0]["metadata"]["name"]]
    assert not (tmp_path / "out").exists()


def test_a_training_that_refused_is_not_done_again(prepared_folder: Path, workspace: Path, tmp_path: Path) -> None:
    server = FakeTrainer("Running", ["train: step 1/2", "error: no threshold meets the recall target"])
    server.exit_code = 1
    with pytest.raises(PneumoniaError, match=r"TrainJob \S+ failed: no threshold meets the recall target"):
        run(server, prepared_folder, workspace, tmp_path / "out")
    assert server.deleted == [server.created[0]["metadata"]["name"]]


def test_a_node_that_was_killed_may_be_started_again(
    bundle: Bundle, prepared_folder: Path, workspace: Path, tmp_path: Path
) -> None:
    server = FakeTrainer("Complete", ["train: step 1/2"], trains(workspace, bundle.path))
    server.exit_code = 137
    assert run(server, prepared_folder, workspace, tmp_path / "out").digest == bundle.digest


def test_a_webhook_that_refuses_is_not_called_missing_rights(
    prepared_folder: Path, workspace: Path, tmp_path: Path
) -> None:
    server = FakeTrainer("Complete", [])
    server.refuse = 403
    server.message = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: no such runtime'
    with pytest.raises(MissingPrerequisite, match=r"Trainer refuses it.*no such runtime.*torch-distributed") as caught:
        run(server, prepared_folder, workspace, tmp_path / "out")
    assert "service account" not in str(caught.value)


def test_a_job_that_fails_without_words(prepared_folder: Path, workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(PneumoniaError, match="JobsFailed: node failed"):
        run(FakeTrainer("Failed", []), prepared_folder, workspace, tmp_path / "out")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_job_goes_with_the_pod_of_the_step(
    bundle: Bundle, prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    (tmp_path / "namespace").write_text("ml\n")
    monkeypatch.setattr("pneumonia.kubernetes._OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KFP_POD_NAME", "run-train-1")
    monkeypatch.setenv("KFP_POD_UID", "7f")
    monkeypatch.setenv("PNEUMONIA_KUBEFLOW_RUN", "0b7c")
    (tmp_path / "shared").mkdir()
    server = FakeTrainer("Complete", [], trains(tmp_path / "shared", bundle.path))
    with serve(server) as url:
        train_on_cluster(
            [], prepared_folder, tmp_path / "out", SHAPE, workspace=tmp_path / "shared",
            namespace="ml" if elsewhere else None, api=client.ApiClient(client.Configuration(host=url)), poll_s=0.02,
        )  # fmt: skip
    # A namespace that was given may be another than the pod's, and Kubernetes removes what such a pod owns at once.
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "run-train-1", "uid": "7f"}
    assert server.created[0]["metadata"].get("ownerReferences") == (None if elsewhere else [owner])
    assert {"name": "PNEUMONIA_KUBEFLOW_RUN", "value": "0b7c"} in server.created[0]["spec"]["trainer"]["env"]


def test_success_without_a_bundle_is_a_failure(prepared_folder: Path, workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(PneumoniaError, match="without a bundle"):
        run(FakeTrainer("Complete", []), prepared_folder, workspace, tmp_path / "out")


def test_a_job_that_someone_deletes_is_a_failure(prepared_folder: Path, workspace: Path, tmp_path: Path) -> None:
    server = FakeTrainer("Running", ["one"])
    threading.Timer(0.5, server.jobs.clear).start()
    with pytest.raises(PneumoniaError, match="was deleted while it ran"):
        run(server, prepared_folder, workspace, tmp_path / "out")


@pytest.mark.parametrize(("status", "words"), [(403, "service account"), (404, "install Kubeflow Trainer")])
def test_a_cluster_that_refuses_says_what_to_do(
    status: int, words: str, prepared_folder: Path, workspace: Path, tmp_path: Path
) -> None:
    server = FakeTrainer("Complete", [])
    server.refuse = status
    with pytest.raises(MissingPrerequisite, match=words):
        run(server, prepared_folder, workspace, tmp_path / "out")


def test_no_shared_volume_is_said(prepared_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingPrerequisite, match="ReadWriteMany"):
        run(FakeTrainer("Complete", []), prepared_folder, tmp_path / "file", tmp_path / "out")


def test_a_step_that_is_stopped_removes_its_job(prepared_folder: Path, workspace: Path, tmp_path: Path) -> None:
    server = FakeTrainer("Running", ["one"])
    code = (
        "import sys; from pathlib import Path; from kubernetes import client\n"
        "from pneumonia.training.trainjob import JobShape, train_on_cluster\n"
        "api = client.ApiClient(client.Configuration(host=sys.argv[1]))\n"
        "train_on_cluster([], Path(sys.argv[2]), Path(sys.argv[4]), JobShape(1, 2, 'i', 'c'),\n"
        "                 workspace=Path(sys.argv[3]), namespace='ml', api=api, poll_s=0.1)"
    )
    with serve(server) as url:
        values = [url, str(prepared_folder), str(workspace), str(tmp_path / "out")]
        step = subprocess.Popen([sys.executable, "-c", code, *values], env=os.environ, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while server.looks < 2:
            assert time.monotonic() < deadline, "the job was not followed"
            time.sleep(0.05)
        step.send_signal(signal.SIGTERM)
        assert step.wait(20) != 0
    assert server.deleted == [server.created[0]["metadata"]["name"]]
