"""The cluster in memory, and what the rollout reads, held against objects of a real KServe 0.21."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pneumonia.rollout.rollout import Hopeless, Rollout, _stopped
from pneumonia.rollout.service import LONGEST_LABEL, SCALER_ANNOTATION, SERVICE_LABEL, Service
from tests.rollout.clusters import NAMESPACE, SERVICE, install
from tests.rollout.fake_cluster import FakeCluster

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = Path(os.environ.get("PNEUMONIA_RECORDINGS") or ROOT.parent / "shared" / "recordings") / "kserve"

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"no recordings at {RECORDINGS}")


def recorded(name: str) -> list[dict[str, Any]]:
    """Objects of a namespace at one moment."""
    (path,) = RECORDINGS.glob(f"{name}-*.json")
    return list(json.loads(path.read_text("utf-8"))["objects"])


def named(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def keys_of(item: Any, path: str = "") -> set[str]:
    """Every path of an object that leads to a value, lists seen as their elements."""
    if isinstance(item, Mapping):
        return {below for key, value in item.items() for below in keys_of(value, f"{path}/{key}")}
    if isinstance(item, list):
        return {below for value in item for below in keys_of(value, path)} or {path}
    return {path}


def fake(**options: Any) -> FakeCluster:
    cluster = FakeCluster(**options)
    install(cluster, "s3://pneumonia/releases/" + "0" * 64)
    cluster.settle()
    return cluster


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Deployment", "/apis/apps/v1/namespaces/{0}/deployments/{1}-predictor"),
        ("HTTPRoute", "/apis/gateway.networking.k8s.io/v1/namespaces/{0}/httproutes/{1}"),
        ("Service", "/api/v1/namespaces/{0}/services/{1}-predictor"),
        ("InferenceService", "/apis/serving.kserve.io/v1beta1/namespaces/{0}/inferenceservices/{1}"),
    ],
)
def test_the_fake_has_no_field_that_the_real_objects_lack(kind: str, path: str) -> None:
    real: set[str] = set()
    for file in RECORDINGS.glob("*.json"):
        real |= {key for item in named(recorded(file.stem.partition("-")[0]), kind).values() for key in keys_of(item)}
    ours = keys_of(fake().request("GET", path.format(NAMESPACE, SERVICE)))
    # Canaries were not recorded while they stood, and the recordings leave identifiers out.
    made_up = {
        key
        for key in ours - real
        if not key.startswith(("/status/canaryStatuses", "/metadata/labels", "/metadata/uid"))
    }
    assert not made_up


def test_scalers_of_older_predictors_stay_and_carry_the_label_that_finds_them() -> None:
    real = recorded("10")
    (service,) = named(real, "InferenceService").values()
    scalers = named(real, "HorizontalPodAutoscaler")
    deployments = named(real, "Deployment")
    assert service["metadata"]["annotations"][SCALER_ANNOTATION] == "hpa"
    assert len(scalers) == 2 and len(deployments) == 1 and set(deployments) < set(scalers)
    assert all(
        scaler["metadata"]["labels"][SERVICE_LABEL] == service["metadata"]["name"] for scaler in scalers.values()
    )

    cluster = fake()
    for item in real:
        if item["kind"] in ("InferenceService", "HorizontalPodAutoscaler"):
            kind = {"InferenceService": "inferenceservices"}.get(item["kind"], "horizontalpodautoscalers")
            cluster.objects[kind, NAMESPACE, item["metadata"]["name"]] = item
    Rollout(cluster, SERVICE, NAMESPACE).clear_scalers()
    left = {name for kind, _, name in cluster.objects if kind == "horizontalpodautoscalers"}
    assert left == set(deployments)


def test_both_routes_lead_to_the_stable_predictor() -> None:
    for moment in ("07", "08"):
        real = recorded(moment)
        service = Service(named(real, "InferenceService")[SERVICE])
        routes = named(real, "HTTPRoute")
        assert set(routes) == {SERVICE, f"{SERVICE}-predictor"}
        backends = {
            b["name"] for route in routes.values() for rule in route["spec"]["rules"] for b in rule["backendRefs"]
        }
        assert backends == {service.workload(service.stable.name)}
        assert {name for kind, _, name in fake().objects if kind == "httproutes"} == set(routes)


def test_the_longest_name_that_worked_is_allowed() -> None:
    service = Service(named(recorded("15"), "InferenceService")["chest-xray-pneumonia-service"])
    service.require_name(service.stable)
    (host,) = named(recorded("15"), "HTTPRoute")["chest-xray-pneumonia-service-predictor"]["spec"]["hostnames"]
    assert len(f"{service.workload(service.stable.name)}-{service.raw['metadata']['namespace']}") <= LONGEST_LABEL
    assert host.startswith("chest-xray-pneumonia-service-predictor-pneumonia.")


def test_a_server_that_stopped_is_hopeless_with_its_exit_code() -> None:
    pods = named(recorded("09"), "Pod")
    (name,) = [pod for pod in pods if "-r57fbb2308568-" in pod]
    (container,) = pods[name]["status"]["containerStatuses"]
    said = _stopped(container)
    assert isinstance(said, Hopeless) and "exit code 1" in said and "CrashLoopBackOff" in said
    # The fake's pod says it in the same fields.
    cluster = FakeCluster(lambda uri: 1 / 0)  # type: ignore[arg-type,return-value]
    install(cluster, "s3://x/releases/" + "1" * 64)
    (pod,) = cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    assert keys_of(pod["status"]) <= keys_of(pods[name]["status"])


def test_a_deployment_stays_available_by_its_conditions_while_a_canary_fails() -> None:
    """Stale conditions: they are of the stable predictor, and say nothing about the canary that had no room."""
    (deployment,) = named(recorded("09b"), "Deployment").values()
    available = [c for c in deployment["status"]["conditions"] if c["type"] == "Available"]
    assert available[0]["status"] == "True"
    ours = fake(quota=1).request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{SERVICE}-predictor")
    assert [c["status"] for c in ours["status"]["conditions"] if c["type"] == "Available"] == ["True"]
