"""The rules of KServe that the in-memory cluster keeps, and that what we send keeps KServe's schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pneumonia.kubernetes import ApiError
from pneumonia.rollout.deploy import deploy, rollback
from pneumonia.rollout.rollout import Rollout
from tests.conftest import ROOT
from tests.rollout.clusters import NAMESPACE, RULES, SERVICE, World, inference_service, install, make_world
from tests.rollout.fake_cluster import FakeCluster, merge_patch

PATH = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices/{SERVICE}"
SCHEMAS = Path(os.environ.get("PNEUMONIA_SCHEMAS") or ROOT.parent / "shared" / "schemas")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def canary(name: str = "r2", percent: int = 0, **predictor: Any) -> dict[str, Any]:
    model = {"name": "kserve-container", "modelFormat": {"name": "triton"}, "storageUri": "s3://models/2"}
    return {"trafficPercent": percent, "predictor": {"name": name, "minReplicas": 1, "model": model, **predictor}}


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    install(made, "s3://models/1")
    return made


def change(cluster: FakeCluster, **spec: Any) -> None:
    cluster.request("PATCH", PATH, {"spec": spec})
    cluster.settle()


@pytest.mark.parametrize(
    ("spec", "status", "said"),
    [
        ({"canary": [canary("")]}, 403, "predictor.name is required"),
        ({"canary": [canary(), canary()]}, 403, "is duplicated"),
        ({"canary": [canary(percent=60), canary("r3", percent=60)]}, 403, "sum to <= 100"),
        ({"canary": [canary(maxReplicas=2)]}, 403, "must not set maxReplicas"),
        ({"canary": [canary(minReplicas=2)]}, 403, "must not exceed stable predictor minReplicas"),
        ({"canary": [canary(model={"modelFormat": {"name": "triton"}})]}, 422, "Required value"),
        ({"predictor": {"model": {"name": "kserve-container"}}}, 403, "'name' field is not allowed"),
        ({"predictor": {"name": "r2"}}, 403, "name change requires a model change"),
    ],
)
def test_refused_as_kserve_refuses(cluster: FakeCluster, spec: dict[str, Any], status: int, said: str) -> None:
    with pytest.raises(ApiError, match=said) as refused:
        cluster.request("PATCH", PATH, {"spec": spec})
    assert refused.value.status == status


def test_a_canary_needs_standard_mode_on_the_object_itself() -> None:
    cluster, service = FakeCluster(), inference_service("s3://models/1")
    service["metadata"]["annotations"] = {}
    cluster.request("POST", PATH.rpartition("/")[0], service)
    with pytest.raises(ApiError, match="only supported in Standard"):
        cluster.request("PATCH", PATH, {"spec": {"canary": [canary()]}})


def test_zero_percent_means_zero_pods_unless_asked_for(cluster: FakeCluster) -> None:
    change(cluster, canary=[merge_patch(canary(), {"predictor": {"minReplicas": None}})])
    assert cluster.workloads[NAMESPACE, "pneumonia-r2-predictor"].pods == []
    change(cluster, canary=[canary()])
    assert len(cluster.workloads[NAMESPACE, "pneumonia-r2-predictor"].pods) == 1


def test_a_promotion_keeps_the_canarys_pods_and_a_mere_new_name_stops_all(cluster: FakeCluster) -> None:
    change(cluster, canary=[canary()])
    (pod,) = cluster.workloads[NAMESPACE, "pneumonia-r2-predictor"].pods
    change(cluster, canary=None, predictor={"name": "r2", "model": {"storageUri": "s3://models/2"}})
    assert [workload.pods for workload in cluster.workloads.values()] == [[pod]]
    cluster.request("PATCH", PATH, {"spec": {"predictor": {"name": "r3", "model": {"storageUri": "s3://models/3"}}}})
    shares = []
    for _ in range(10):
        cluster.tick()
        shares.append(cluster.traffic(NAMESPACE, SERVICE))
    assert {"": 100} in shares and shares[-1] == {"s3://models/3": 100}


def test_a_dark_canary_takes_a_pod_from_the_stable_predictor() -> None:
    cluster = FakeCluster()
    install(cluster, "s3://models/1", replicas=3)
    change(cluster, canary=[canary()])
    assert len(cluster.workloads[NAMESPACE, "pneumonia-predictor"].pods) == 2


def test_a_conflict_and_what_is_not_there(cluster: FakeCluster) -> None:
    with pytest.raises(ApiError, match="modified"):
        cluster.request("PATCH", PATH, {"metadata": {"resourceVersion": "1000"}})
    with pytest.raises(ApiError, match="already exists"):
        cluster.request("POST", PATH.rpartition("/")[0], inference_service("s3://models/1"))
    for path, known in ((f"{PATH}x", True), ("/apis/other/v1/namespaces/x/things/y/z", False)):
        with pytest.raises(ApiError) as missing:
            cluster.request("GET", path)
        assert (missing.value.status, missing.value.kind_known) == (404, known)


def test_every_object_that_a_rollout_makes_keeps_kserves_schema(world: World) -> None:
    """Of the CRD as its project publishes it: types, patterns, required fields, and no field it does not know."""
    file = SCHEMAS / "serving.kserve.io_inferenceservices.yaml"
    if not file.is_file():
        pytest.skip(f"no CustomResourceDefinitions at {SCHEMAS}; set PNEUMONIA_SCHEMAS to a folder of them")
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    crd = yaml.load(file.read_text("utf-8"), yaml.CSafeLoader)
    schema = next(v for v in crd["spec"]["versions"] if v["name"] == "v1beta1")["schema"]["openAPIV3Schema"]
    validator = jsonschema.Draft202012Validator(schema)
    made, cluster = [], world.cluster(replicas=3)
    request = cluster.request

    def watch(method: str, path: str, *rest: Any, **named: Any) -> dict[str, Any]:
        answer = request(method, path, *rest, **named)
        if method != "GET" and "inferenceservices" in path:
            made.append(answer)
        return answer

    cluster.request = watch  # type: ignore[assignment,method-assign]
    rules = {"cluster": cluster, "connect": cluster.connect, **RULES}
    deploy(str(world.releases[1]), world.bundles[1].path, world.images, **rules)
    rollback(Rollout(cluster, SERVICE, NAMESPACE, cluster.connect, poll_s=0))
    assert len(made) >= 6
    for service in made:
        spec = {"apiVersion": service["apiVersion"], "kind": service["kind"], "spec": service["spec"]}
        assert [error.message for error in validator.iter_errors(spec)] == []
        assert list(unknown(schema["properties"]["spec"], service["spec"], "spec")) == []
    assert list(unknown(schema["properties"]["spec"], {"canari": 1}, "spec")) == ["spec.canari"]


def unknown(schema: Any, value: Any, at: str) -> Any:
    """Fields that the API server would drop."""
    if isinstance(value, list):
        for item in value:
            yield from unknown(schema.get("items", {}), item, at)
    elif isinstance(value, dict) and "properties" in schema:
        for key, item in value.items():
            if key not in schema["properties"]:
                yield f"{at}.{key}"
            else:
                yield from unknown(schema["properties"][key], item, f"{at}.{key}")
