"""What cannot work is refused within a minute, with the cluster's or the server's own reason, and costs no request."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pneumonia import contract
from pneumonia.bundle import extend_bundle
from tests.cluster.commands import ROOT
from tests.cluster.conftest import NAME, Namespace, Releases, s3_client
from tests.rollout.clusters import World

LIMIT_S = 60


@pytest.fixture(scope="module")
def service(namespace: Namespace, releases: Releases) -> Namespace:
    namespace.install(releases.uris[0])
    return namespace


@pytest.fixture(autouse=True)
def unchanged(service: Namespace, releases: Releases) -> Iterator[None]:
    yield
    assert service.stable() == releases.uris[0]
    assert "canary" not in service.get("inferenceservice", NAME)["spec"]


def refused(service: Namespace, arguments: list[str], code: int = 5) -> str:
    """What a promotion says that is refused in time."""
    began = time.monotonic()
    said = service.model(*arguments, code=code)
    taken = time.monotonic() - began
    print(f"refused after {taken:.0f} s")
    assert taken < LIMIT_S, f"{taken:.0f} s"
    return said


def test_a_release_that_does_not_load(service: Namespace, releases: Releases) -> None:
    uri = urlsplit(releases.uris[1])
    client = s3_client()
    listed = client.list_objects_v2(Bucket=uri.netloc, Prefix=f"{uri.path.strip('/')}/")["Contents"]
    (key,) = [item["Key"] for item in listed if item["Key"].endswith(contract.ONNX_FILE)]
    whole = client.get_object(Bucket=uri.netloc, Key=key)["Body"].read()
    client.put_object(Bucket=uri.netloc, Key=key, Body=whole[:-100])
    try:
        said = refused(service, releases.promote(1, "--soak", "2"))
    finally:
        client.put_object(Bucket=uri.netloc, Key=key, Body=whole)
    # The server's own sentence: which file, and what is wrong with it.
    assert contract.ONNX_FILE in said and "exit code" in said


def test_a_synthetic_release_before_a_pod_exists(service: Namespace, releases: Releases, tmp_path: Path) -> None:
    bundle = synthetic(releases.world, tmp_path)
    uri = releases.publish(bundle)
    images = str(releases.world.images)
    said = refused(service, ["promote", uri, "--images", images, "--bundle", str(bundle)])
    assert "synthetic" in said and "model.synthetic=true" in said
    assert len(service.get("replicasets")) == 1


def synthetic(world: World, folder: Path) -> Path:
    """The second bundle, said to be trained on synthetic images."""
    opened = world.bundles[1]
    data = {**opened.manifest.data, "synthetic": True}
    return extend_bundle(opened, folder / "synthetic", {}, data=data).path


def test_one_over_a_quota(service: Namespace, releases: Releases) -> None:
    service.kubectl("create", "quota", "pods", f"--hard=pods={len(service.get('pods'))}")
    try:
        said = refused(service, releases.promote(1, "--soak", "2"))
    finally:
        service.kubectl("delete", "quota", "pods")
    assert "exceeded quota" in said


def test_one_without_room(service: Namespace, releases: Releases) -> None:
    """More memory than any node has, asked for by what a canary takes from the stable predictor."""
    nodes = service.get("nodes")
    node = max(nodes, key=lambda item: kibibytes(item["status"]["allocatable"]["memory"]))
    half = int(kibibytes(node["status"]["allocatable"]["memory"]) * 0.51)
    selector = {"kubernetes.io/hostname": node["metadata"]["labels"]["kubernetes.io/hostname"]}
    values = {
        "resources": {"requests": {"memory": f"{half}Ki"}, "limits": {"memory": f"{half}Ki"}},
        "scheduling": {"nodeSelector": selector},
    }
    chart = str(ROOT / "helm" / "pneumonia")
    service.helm(
        "upgrade", NAME, chart, "-f", str(service.values(releases.uris[0], {**values, "scaling": {"surge": False}}))
    )
    service.ready()
    said = refused(service, releases.promote(1, "--soak", "2"))
    assert "Unschedulable" in said and "Insufficient memory" in said


def kibibytes(quantity: str) -> int:
    units = {"Ki": 1, "Mi": 1024, "Gi": 1024**2}
    return int(quantity[:-2]) * units[quantity[-2:]] if quantity[-2:] in units else int(quantity) // 1024


def test_an_image_without_a_release_says_so(namespace: Namespace, releases: Releases) -> None:
    """What `helm install` of a server image that holds none comes to: the pod's own sentence."""
    if os.environ.get("CLUSTER_IMAGE_IS_BAKED"):
        pytest.skip("CLUSTER_IMAGE holds a release")
    repository, _, tag = os.environ["CLUSTER_IMAGE"].rpartition(":")
    image = [f"--set=image.repository={repository}", f"--set=image.tag={tag}", "--set=resources.requests.cpu=100m"]
    namespace.helm("install", "empty", str(ROOT / "helm" / "pneumonia"), *image)
    end = time.monotonic() + LIMIT_S
    said = ""
    while "no release" not in said and time.monotonic() < end:
        pods = namespace.get("pods", "-l", "serving.kserve.io/inferenceservice=empty")
        statuses = [status for pod in pods for status in pod["status"].get("containerStatuses", ())]
        said = json.dumps([status.get("lastState") or status.get("state") for status in statuses])
        time.sleep(1)
    namespace.helm("uninstall", "empty")
    assert "no release" in said, said
