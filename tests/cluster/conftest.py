"""A real cluster with KServe, named by the environment; everything here skips with a reason where there is none.

KUBECONFIG, CLUSTER_CONTEXT: the cluster, and its context where it is not the current one. CLUSTER_IMAGE: a server image
that the nodes have or can pull, such as pneumonia-triton:0.1.0. CLUSTER_GATEWAY: address of the gateway, such as
http://127.0.0.1:8080. CLUSTER_S3: address of an S3 server, the same for the pods and for this process, with the bucket
CLUSTER_S3_BUCKET (`pneumonia`); AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are its keys. CLUSTER_VALUES: a
file of further values for the chart, such as the gateway's namespace. CLUSTER_IMAGE_IS_BAKED: set where the image holds
a release.

Run it where the cluster's Services answer by their names: on a node, in a pod, or through a tunnel. Each test makes
namespaces of its own (`pt-` and four digits) and removes them, and a prefix in the bucket.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.cluster.commands import ROOT
from tests.rollout.clusters import World, make_world

NEEDED = ("CLUSTER_IMAGE", "CLUSTER_GATEWAY", "CLUSTER_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
NAME = "pneumonia"


def missing() -> str:
    """Why there is no cluster to test on; empty where there is one."""
    if lacks := [name for name in NEEDED if not os.environ.get(name)]:
        return f"no cluster is named: {', '.join(lacks)} unset"
    if lacks := [program for program in ("kubectl", "helm") if shutil.which(program) is None]:
        return f"{', '.join(lacks)} not installed"
    answer = subprocess.run([*kubectl(), "get", "--raw", "/version"], capture_output=True, text=True, timeout=60)
    if answer.returncode:
        return f"the cluster does not answer: {answer.stderr.strip()}"
    try:
        socket.getaddrinfo("kubernetes.default.svc", 443)
    except OSError:
        return "the names of the cluster's Services are not known here; run this on a node or in a pod"
    return ""


def kubectl() -> list[str]:
    context = os.environ.get("CLUSTER_CONTEXT")
    return ["kubectl", *(["--context", context] if context else [])]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and (reason := missing()):
        for item in here:
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass
class Namespace:
    """A namespace of one test, and the tools pointed at it."""

    name: str
    domain: str = ""
    bundles: list[Path] = field(default_factory=list)

    def kubectl(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> str:
        """What kubectl prints."""
        return run([*kubectl(), "-n", self.name, *arguments], check, timeout_s)

    def get(self, *arguments: str) -> Any:
        """An object, or a list's items."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found["items"] if found["kind"].endswith("List") else found

    def helm(self, *arguments: str, check: bool = True, timeout_s: float = 600) -> str:
        """What helm prints."""
        context = os.environ.get("CLUSTER_CONTEXT")
        chosen = ["--kube-context", context] if context else []
        return run(["helm", *arguments, "-n", self.name, *chosen], check, timeout_s)

    def install(self, release: str, values: dict[str, Any] | None = None, wait: bool = True) -> None:
        """The chart with a release from the bucket, and ready."""
        self.helm("install", NAME, str(ROOT / "helm" / "pneumonia"), "-f", str(self.values(release, values)))
        if wait:
            self.ready()

    def upgrade(self, wait: bool = True, **changed: Any) -> None:
        """`helm upgrade` with changed values, and ready."""
        given = [f"--set={key.replace('__', '.')}={value}" for key, value in changed.items()]
        self.helm("upgrade", NAME, str(ROOT / "helm" / "pneumonia"), "--reuse-values", *given)
        if wait:
            self.ready()

    def values(self, release: str, values: dict[str, Any] | None = None) -> Path:
        """A values file for this cluster."""
        repository, _, tag = os.environ["CLUSTER_IMAGE"].rpartition(":")
        s3 = urlsplit(os.environ["CLUSTER_S3"])
        given: dict[str, Any] = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"},
            "model": {"source": "s3", "uri": release},
            "s3": {
                "createSecret": True,
                "accessKeyId": os.environ["AWS_ACCESS_KEY_ID"],
                "secretAccessKey": os.environ["AWS_SECRET_ACCESS_KEY"],
                "endpoint": s3.netloc,
                "useHttps": s3.scheme == "https",
            },
            "networkPolicy": {"storagePorts": [443, s3.port or 443]},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
            "gateway": {"exposed": True},
        }
        if more := os.environ.get("CLUSTER_VALUES"):
            given = merged(given, yaml.safe_load(Path(more).read_text("utf-8")))
        path = Path(os.environ["PYTEST_CLUSTER_FOLDER"]) / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(merged(given, values or {})), "utf-8")
        return path

    def ready(self, timeout_s: float = 240) -> None:
        """Wait for KServe to call the service ready and for its pods to be all new."""
        # Not condition=Ready: kubectl compares generations then, and KServe writes that of its Deployment.
        ready = """--for=jsonpath={.status.conditions[?(@.type=="Ready")].status}=True"""
        self.kubectl("wait", ready, f"inferenceservice/{NAME}", f"--timeout={timeout_s:.0f}s")
        for deployment in self.get("deployments"):
            self.kubectl(
                "rollout", "status", f"deployment/{deployment['metadata']['name']}", f"--timeout={timeout_s:.0f}s"
            )

    def host(self) -> str:
        """What the gateway knows the service as."""
        return str(urlsplit(self.get("inferenceservice", NAME)["status"]["url"]).netloc)

    def stable(self) -> str:
        """URI of what is served."""
        return str(self.get("inferenceservice", NAME)["spec"]["predictor"]["model"]["storageUri"])

    def pneumoctl(self, *arguments: str) -> list[str]:
        """A command line of `pneumoctl model`."""
        context = os.environ.get("CLUSTER_CONTEXT")
        chosen = ["--context", context] if context else []
        code = "from pneumonia.cli.app import main; main()"
        return [sys.executable, "-c", code, "model", *arguments, "-s", NAME, "-n", self.name, *chosen]

    def model(self, *arguments: str, code: int = 0, timeout_s: float = 300) -> str:
        """Both streams of a `pneumoctl model` command that ends with `code`."""
        done = subprocess.run(self.pneumoctl(*arguments), capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == code, f"exit {done.returncode}, expected {code}: {done.stderr}"
        return done.stderr + done.stdout


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the second one winning."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result


def run(command: Sequence[str], check: bool = True, timeout_s: float = 300) -> str:
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    assert not check or done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {done.stderr}{done.stdout}"
    return done.stdout + ("" if check else done.stderr)


@dataclass(frozen=True)
class Releases:
    """Two releases in the bucket with the bundles they were made of and labelled images, and a root for more."""

    root: str
    world: World
    uris: tuple[str, str]

    def promote(self, which: int, *options: str) -> list[str]:
        """Arguments of `pneumoctl model promote` for one of the two."""
        bundle = str(self.world.bundles[which].path)
        return ["promote", self.uris[which], "--images", str(self.world.images), "--bundle", bundle, *options]

    def publish(self, bundle: Path) -> str:
        """A bundle's release in the bucket."""
        return publish(bundle, self.root)


def publish(bundle: Path, root: str) -> str:
    code = "from pneumonia.cli.app import main; main()"
    environment = {**os.environ, "AWS_ENDPOINT_URL": os.environ["CLUSTER_S3"]}
    command = [sys.executable, "-c", code, "publish", "--bundle", str(bundle), "--root", root]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["release"])


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Releases]:
    bucket = os.environ.get("CLUSTER_S3_BUCKET", "pneumonia")
    prefix = f"test-cluster-{uuid.uuid4().hex[:8]}"
    world = make_world(tmp_path_factory.mktemp("world"))
    root = f"s3://{bucket}/{prefix}"
    first, second = (publish(bundle.path, root) for bundle in world.bundles)
    yield Releases(root, world, (first, second))
    client = s3_client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for item in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=item["Key"])


def s3_client() -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["CLUSTER_S3"], region_name="us-east-1")


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    os.environ["PYTEST_CLUSTER_FOLDER"] = str(tmp_path_factory.mktemp("values"))
    here = Namespace(f"pt-{uuid.uuid4().hex[:4]}")
    run([*kubectl(), "create", "namespace", here.name])
    yield here
    run([*kubectl(), "delete", "namespace", here.name, "--wait=true", "--timeout=180s"])


@pytest.fixture(autouse=True)
def timed(request: pytest.FixtureRequest) -> Iterator[None]:
    """How long each step took, in the log."""
    began = time.monotonic()
    yield
    print(f"{request.node.name}: {time.monotonic() - began:.0f} s")


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Return once it holds; fail where it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not after {timeout_s:.0f} s: {what}"
        time.sleep(0.5)
