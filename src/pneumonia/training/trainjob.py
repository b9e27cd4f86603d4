"""Training on several GPUs or nodes of a cluster: a TrainJob of Kubeflow Trainer, followed to its end.

Kubeflow's SDK has a client for TrainJobs (kubeflow 0.5, TrainerClient). It is not used: it sets no owner, by which the
job goes with the step's pod, and it waits for the job's condition, which comes after six restarts of a training that
refused; to look at the nodes meanwhile takes this module's own calls again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.core.signals import terminate_as_interrupt
from pneumonia.errors import MissingPrerequisite, PneumoniaError, ServerUnavailable
from pneumonia.kubernetes import ApiError, KubernetesCluster, own_namespace, path_of

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME = "torch-distributed"
"""Kubeflow Trainer's own runtime for torchrun; its job and its container are both called `node`."""
WORKSPACE = Path("/workspace")
NODE = "node"
JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
GPU = "nvidia.com/gpu"
GPU_TAINT = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
"""As a toleration: what GPU nodes are usually tainted with."""
POLL_S = 5.0
SIGNALLED = 128
"""Exit codes from here on are of processes that a signal ended."""
UNREACHABLE_FOR_S = 300.0
"""How long the API server may stay away before the job counts as lost."""
_PASSED_ON = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
              "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")  # fmt: skip
_SECRETS = {name: "pneumonia-mlflow" if name.startswith("MLFLOW") else "pneumonia-s3" for name in _PASSED_ON}


@dataclass(frozen=True)
class JobShape:
    """num_nodes, gpus: nodes, and GPUs of each. image: step image with CUDA. claim: ReadWriteMany volume claim.

    tolerations, node_selector: of the nodes' pods; the usual taint of GPU nodes is tolerated anyway.
    """

    num_nodes: int
    gpus: int
    image: str
    claim: str
    tolerations: Sequence[Mapping[str, Any]] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)


def train_job(name: str, settings: Sequence[str], shape: JobShape, folder: str) -> dict[str, Any]:
    """The TrainJob object: torchrun of `pneumoctl train` on what lies in WORKSPACE/<folder>/prepared."""
    where = f"{WORKSPACE}/{folder}"
    gpus = str(shape.gpus)
    train = ["pneumoctl", "train", *settings, "--prepared", f"{where}/prepared", f"output_dir={where}/out"]
    mount = {"name": "workspace", "mountPath": str(WORKSPACE)}
    pod: dict[str, Any] = {
        "tolerations": [GPU_TAINT, *map(dict, shape.tolerations)],
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": shape.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
        ],
        "containers": [
            {"name": NODE, "volumeMounts": [mount, {"name": "shared-memory", "mountPath": "/dev/shm"}]}
        ],
    }  # fmt: skip
    if shape.node_selector:
        pod["nodeSelector"] = dict(shape.node_selector)
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    said = {"PYTHONUNBUFFERED": "1", contract.KUBEFLOW_RUN_ENV: os.environ.get(contract.KUBEFLOW_RUN_ENV, "")}
    secrets = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}
        for key, secret in _SECRETS.items()
    ]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "pneumonia"}},
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": RUNTIME},
            "trainer": {
                "image": shape.image,
                "numNodes": shape.num_nodes,
                "numProcPerNode": shape.gpus,
                # torchrun takes nodes, processes and the meeting point from the PET_* variables that Trainer sets.
                "command": ["torchrun", "--no-python", *train],
                "env": [*({"name": key, "value": value} for key, value in said.items() if value), *secrets],
                "resourcesPerNode": {"limits": {GPU: gpus}, "requests": {GPU: gpus}},
            },
            "runtimePatches": [
                {
                    "manager": "pneumonia.train/step",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
                }
            ],
        },
    }


def train_on_cluster(
    settings: Sequence[str],
    prepared: Path,
    out: Path,
    shape: JobShape,
    *,
    workspace: Path = WORKSPACE,
    namespace: str | None = None,
    api: Any = None,
    poll_s: float = POLL_S,
) -> Bundle:
    """Train in a TrainJob on `prepared` and write the bundle `out`; the log of the first node goes to stderr.

    settings: configuration overrides. workspace: where the claim of `shape` is mounted here. namespace: of the job;
    this pod's own by default. api: a kubernetes.client.ApiClient; this pod's account by default. Job and files go at
    the end, and when SIGTERM or Ctrl-C comes. Raises PneumoniaError with the job's reason where it fails or is deleted
    meanwhile, MissingPrerequisite where the cluster refuses, ServerUnavailable where it stays away.
    """
    name = f"pneumonia-train-{uuid.uuid4().hex[:8]}"
    folder = workspace / name
    # One attempt: whoever follows a job asks again by itself, and says so.
    jobs = _Jobs(KubernetesCluster(api=api, attempts=1), namespace or own_namespace())
    with terminate_as_interrupt():
        try:
            shutil.copytree(prepared, folder / "prepared")
            job = train_job(name, settings, shape, name)
            job["metadata"].update({} if namespace else _owned_by_this_pod())
            jobs.create(job)
            _follow(jobs, name, poll_s)
            made = list((folder / "out").glob(f"*/bundle/{contract.BUNDLE_MANIFEST}"))
            if not made:
                raise PneumoniaError(f"TrainJob {name} ended with success and without a bundle; see its log above")
            return extend_bundle(open_bundle(made[0].parent), out, {})
        except OSError as error:
            raise MissingPrerequisite(
                f"{workspace}: {error}; mount the ReadWriteMany claim {shape.claim} there, in this step and the nodes"
            ) from error
        finally:
            jobs.delete(name)
            shutil.rmtree(folder, ignore_errors=True)


def _follow(jobs: _Jobs, name: str, poll_s: float) -> None:
    """Show the log of the first node until the job has ended. Raises PneumoniaError where it failed or is gone."""
    shown = _Log(jobs, name)
    lost_since: float | None = None
    while True:
        try:
            ended = _ended(jobs.get(name))
            lost_since = None
        except ServerUnavailable as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > UNREACHABLE_FOR_S:
                raise
            print(f"train: {error}; asking again", file=sys.stderr, flush=True)
            ended = None
        shown.more()
        ended = jobs.refusal(name) if ended is None else ended
        if ended is not None:
            if ended:
                raise PneumoniaError(f"TrainJob {name} failed: {shown.reason() or ended}")
            return
        time.sleep(poll_s)


def _ended(job: Mapping[str, Any]) -> str | None:
    """None while the job runs, "" where it succeeded, else why it failed."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["status"] == "True" and condition["type"] == "Complete":
            return ""
        if condition["status"] == "True" and condition["type"] == "Failed":
            return f"{condition['reason']}: {condition['message']}"
    return None


class _Log:
    """What the first node has written, each line once."""

    def __init__(self, jobs: _Jobs, name: str) -> None:
        self.jobs, self.name = jobs, name
        self.lines: list[str] = []
        self.said = ""

    def more(self) -> None:
        """Show what is new. A pod that is not there yet has written nothing.

        A log that cannot be read is said once, and costs no training.
        """
        try:
            lines = self.jobs.log(self.name).splitlines()
        except PneumoniaError as error:
            if str(error) != self.said:
                print(f"train: no log for now, {error}", file=sys.stderr, flush=True)
            self.said = str(error)
            return
        self.said = ""
        # A pod that was replaced begins anew.
        new = lines[len(self.lines) :] if lines[: len(self.lines)] == self.lines else lines
        self.lines = lines
        for line in new:
            print(line, file=sys.stderr, flush=True)

    def reason(self) -> str:
        """The last error line that the library itself wrote, before a restart too; empty where there is none."""
        lines = list(self.lines)
        with contextlib.suppress(PneumoniaError):
            lines = [*self.jobs.log(self.name, previous=True).splitlines(), *lines]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else ""


class _Jobs:
    """TrainJobs of one namespace."""

    def __init__(self, cluster: KubernetesCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def create(self, job: Mapping[str, Any]) -> None:
        """A new job."""
        with self._explained("create TrainJob"):
            self.cluster.request("POST", path_of(PLURAL, self.namespace), job)
        print(f"train: TrainJob {job['metadata']['name']} in namespace {self.namespace}", file=sys.stderr, flush=True)

    def get(self, name: str) -> dict[str, Any]:
        """The job. Raises PneumoniaError where it is gone."""
        with self._explained("get TrainJob", gone=f"TrainJob {name} was deleted while it ran"):
            return self.cluster.request("GET", path_of(PLURAL, self.namespace, name))

    def refusal(self, name: str) -> str | None:
        """What ended by itself with an exit code on one of the job's nodes; None where nothing did.

        The runtime restarts such a node in place, six times, and only then calls the job failed: a training that
        refused would be done seven times. A node that was killed from outside may be restarted.
        """
        try:
            with self._explained("look at the pods of TrainJob", gone=f"the pods of TrainJob {name} are gone"):
                pods = self._pods(f"{JOB_LABEL}={name}")
        except PneumoniaError as error:
            print(f"train: {error}; asking again", file=sys.stderr, flush=True)
            return None
        for pod in pods:
            for status in pod.get("status", {}).get("containerStatuses", ()):
                for state in (status.get("state") or {}, status.get("lastState") or {}):
                    code = (state.get("terminated") or {}).get("exitCode", 0)
                    if 0 < code < SIGNALLED:
                        return f"{pod['metadata']['name']} ended with exit code {code}"
        return None

    def log(self, name: str, previous: bool = False) -> str:
        """All that the first node has written so far, or had before its restart; empty before it runs."""
        with self._explained("read the log of TrainJob", gone=f"the pod of TrainJob {name} is gone"):
            pods = self._pods(f"{JOB_LABEL}={name},{INDEX_LABEL}=0")
            started = [pod for pod in pods if pod["status"].get("phase") in ("Running", "Succeeded", "Failed")]
            if not started:
                return ""
            newest = max(started, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
            path = f"{path_of('pods', self.namespace, newest['metadata']['name'])}/log"
            return self.cluster.text(path, {"container": NODE} | ({"previous": "true"} if previous else {}))

    def _pods(self, selector: str) -> list[dict[str, Any]]:
        found = self.cluster.request("GET", path_of("pods", self.namespace), query={"labelSelector": selector})
        return list(found.get("items", ()))

    def delete(self, name: str) -> None:
        """Remove the job with its pods; one that is gone is fine, one that cannot be removed is said."""
        path = path_of(PLURAL, self.namespace, name)
        try:
            self.cluster.request("DELETE", path, query={"propagationPolicy": "Background"})
        except (ApiError, ServerUnavailable) as error:
            if not (isinstance(error, ApiError) and error.status == 404):
                print(f"train: delete TrainJob {name} by hand, it could not be ({error})", file=sys.stderr)

    @contextlib.contextmanager
    def _explained(self, what: str, gone: str | None = None) -> Iterator[None]:
        """The API's refusals as errors that say what to do. gone: message of a 404, which else means no such kind."""
        try:
            yield
        except ServerUnavailable as error:
            raise ServerUnavailable(f"{what}: {error}") from error
        except ApiError as error:
            said = f"{error.status} {error}"[:400]
            if error.status == 404 and gone:
                raise PneumoniaError(gone) from error
            if error.status in (429, 500, 502, 503, 504):
                raise ServerUnavailable(f"{what}: the cluster is busy ({said})") from error
            if "admission webhook" in str(error):
                # Answered with 403, as missing rights are.
                raise MissingPrerequisite(
                    f"{what} in namespace {self.namespace}: Kubeflow Trainer refuses it: {said}; it needs the "
                    f"ClusterTrainingRuntime {RUNTIME}"
                ) from error
            advice = {
                403: "let this step's service account create, get and delete trainjobs and read pods and their logs",
                404: "install Kubeflow Trainer 2",
            }.get(error.status, "check that Kubeflow Trainer's CRDs and controller are of one version")
            raise MissingPrerequisite(
                f"{what} in namespace {self.namespace}: the cluster answers {said}; {advice}"
            ) from error


def _owned_by_this_pod() -> dict[str, Any]:
    """Metadata by which Kubernetes removes the job with the step's pod, should the step be killed before it can.

    Pipelines' launcher names the pod in the environment. An owner has to be of the job's own namespace.
    """
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]} if name and uid else {}
