"""The first step: what it refuses, what it looks at, and where it places the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pneumonia.config.compose import compose
from pneumonia.errors import ConfigError, DataError, MissingPrerequisite, PneumoniaError, UsageError
from pneumonia.kubernetes import ApiError, Namespace
from pneumonia.pipelines import start as module
from pneumonia.pipelines.checks import VOLUMES
from pneumonia.pipelines.gpu_nodes import require_gpu_nodes
from pneumonia.pipelines.run import compiled_pipeline
from pneumonia.pipelines.start import GPU_TAINT, data_digest, places, require_volume, start
from tests.xray_folders import kaggle_names, write_images

PARAMETERS: dict[str, Any] = {
    "source": "folder", "data_volume": "", "release_root": "", "release_volume": "", "s3_endpoint": "", "num_nodes": 1,
    "gpus": 0, "gpu_tolerations": [], "gpu_node_selector": {}, "gpu_autoscaling": False, "training_volume": "",
    "cpu_image": "c", "cuda_image": "g", "tensorrt": False, "backend": "auto", "deploy": False, "namespace": "ml",
    "inference_service": "pneumonia",
    "cpu_request": "250m", "cpu_limit": "4", "memory_request": "1Gi", "memory_limit": "8Gi",
}  # fmt: skip
PHANTOMS = ("experiment=smoke", "data=phantom", "tracking.uri=null")


def given(**changes: Any) -> dict[str, Any]:
    return {**PARAMETERS, **changes}


def test_without_a_gpu_training_and_export_run_in_the_small_image() -> None:
    place = places("d", [], given(gpu_node_selector={"pool": "gpu"}))
    assert place[2:7] == ("c", "", [], {}, {})
    assert place[7:] == ("c", "", [], {})


def test_one_gpu_is_the_steps_own() -> None:
    taint = {"key": "team", "operator": "Exists"}
    place = places("d", [], given(gpus=1, gpu_tolerations=[taint], gpu_node_selector={"pool": "gpu"}))
    assert place[2:7] == ("g", "1", [GPU_TAINT, taint], {"pool": "gpu"}, {})
    assert place.export_image == "c"


def test_an_engine_is_built_on_a_gpu() -> None:
    place = places("d", [], given(tensorrt=True))
    assert (place.train_image, place.export_image, place.export_gpus) == ("c", "g", "1")


@pytest.mark.parametrize("shape", [{"gpus": 2}, {"gpus": 1, "num_nodes": 2}])
def test_several_gpus_are_those_of_a_trainjob_which_a_step_without_one_follows(shape: dict[str, int]) -> None:
    place = places("d", [], given(**shape, training_volume="claim", gpu_node_selector={"pool": "gpu"}))
    assert (place.train_image, place.train_gpus, place.train_node_selector) == ("c", "", {})
    assert place.train_nodes == {
        "num_nodes": 1, "tolerations": [], "node_selector": {"pool": "gpu"}, "image": "g", "claim": "claim", **shape,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"gpus": 2}, UsageError, "give training_volume="),
        ({"num_nodes": 2}, UsageError, "gpus of each node"),
        ({"memory_limit": "8 GB"}, UsageError, "memory_limit=8 GB: not a quantity"),
        ({"backend": "tensorrt"}, UsageError, "only tensorrt=true builds"),
        ({"backend": "torch"}, UsageError, "backend=torch: not one of"),
        ({"source": "phantom", "deploy": True}, UsageError, "servers refuse a model of drawn images"),
        ({"deploy": True, "release_root": "/somewhere"}, UsageError, "no server of the cluster can read"),
    ],
)
def test_what_cannot_end_well_is_refused(changes: dict[str, Any], error: type[PneumoniaError], words: str) -> None:
    with pytest.raises(error, match=words):
        start(PHANTOMS, given(**changes))


def test_a_mistyped_override_a_lost_model_and_a_lost_folder_are_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    root = {"release_root": str(tmp_path)}
    with pytest.raises(ConfigError, match="no such key"):
        start([*PHANTOMS, "data.no_such=1"], given(**root))
    with pytest.raises(MissingPrerequisite, match=r"model\.checkpoint=nobody/no-such-model"):
        start([*PHANTOMS, "model.checkpoint=nobody/no-such-model"], given(**root))
    with pytest.raises(DataError):
        start(["experiment=smoke", "data=folder", f"data.root={tmp_path / 'gone'}"], given(**root))
    assert start([*PHANTOMS, "model.checkpoint=/only/on/the/node/that/trains"], given(**root)).train_image == "c"


def test_a_tracking_server_that_is_down_is_found_first(tmp_path: Path) -> None:
    with pytest.raises(PneumoniaError, match=r"127\.0\.0\.1:9"):
        start([*PHANTOMS[:2], "tracking.uri=http://127.0.0.1:9"], given(release_root=str(tmp_path)))


def test_the_digest_follows_the_images_and_the_salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PNEUMONIA_PATIENT_SALT", raising=False)
    folder = write_images(tmp_path / "xrays", kaggle_names(4, 4))
    config = compose(["experiment=smoke", "data=folder", f"data.root={folder}"])
    first = data_digest(config)
    assert data_digest(config) == first
    image = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    image.write_bytes(image.read_bytes() + b"\0")
    changed = data_digest(config)
    assert changed != first
    monkeypatch.setenv("PNEUMONIA_PATIENT_SALT", "a-salt-of-the-tests")
    assert data_digest(config) not in (first, changed)


@pytest.mark.parametrize(
    ("one", "other"), [("data.seed=1", "data.seed=2"), ("data.num_images=40", "data.num_images=60")]
)
def test_the_digest_of_phantoms_follows_what_decides_them(one: str, other: str) -> None:
    assert data_digest(compose([*PHANTOMS, one])) != data_digest(compose([*PHANTOMS, other]))


def test_a_volume_has_to_be_mounted_and_usable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pneumoctl pipeline submit data_volume=xrays"):
        require_volume("data_volume", "xrays", tmp_path / "gone", writes=False)
    require_volume("data_volume", "xrays", tmp_path, writes=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_volume_of_another_user_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MissingPrerequisite, match="chown"):
        require_volume("release_volume", "claim", tmp_path, writes=True)


class Cluster:
    """An API server that answers reviews of rights, and knows one InferenceService."""

    def __init__(self, allowed: set[str], known: bool = True) -> None:
        self.allowed, self.known = allowed, known
        self.asked: list[dict[str, Any]] = []

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        if body is not None:
            asked = body["spec"]["resourceAttributes"]
            self.asked.append(asked)
            return {"status": {"allowed": f"{asked['verb']} {asked['resource']}" in self.allowed}}
        if not self.known:
            raise ApiError(404, "not found", kind_known=True)
        return {"metadata": {"name": "pneumonia"}}


def test_every_right_that_lacks_is_named_with_where_it_comes_from() -> None:
    cluster = Cluster({"get inferenceservices"})
    with pytest.raises(MissingPrerequisite) as caught:
        Namespace(cluster, "ml").require(
            [("get", "inferenceservices"), ("patch", "inferenceservices"), ("list", "pods")]
        )
    assert "may not patch inferenceservices, list pods in namespace ml" in str(caught.value)
    assert "deployStep" in str(caught.value)
    assert [item["group"] for item in cluster.asked] == ["serving.kserve.io", "serving.kserve.io", ""]


def test_deploying_asks_for_rights_and_for_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {f"{verb} {kind}" for verb, kind in module.DEPLOY_RIGHTS}
    wanted = given(deploy=True, release_root="s3://bucket/x")
    for cluster, words in (
        (Cluster(every - {"create configmaps"}), "create configmaps"),
        (Cluster(every, False), "install"),
    ):
        monkeypatch.setattr(module, "KubernetesCluster", lambda found=cluster: found)
        with pytest.raises(MissingPrerequisite, match=words):
            module._require_rights(wanted)
    monkeypatch.setattr(module, "KubernetesCluster", lambda: Cluster(every))
    module._require_rights(wanted)


def node(gpus: int | None = None, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    allocatable = {"cpu": "8", "pods": "110", **({} if gpus is None else {"nvidia.com/gpu": str(gpus)})}
    return {"metadata": {"name": "n", "labels": labels or {}}, "spec": spec, "status": {"allocatable": allocatable}}


GPU_NODE_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TEAM_TAINT = {"key": "team", "value": "radiology", "effect": "NoExecute"}


@pytest.mark.parametrize(
    ("nodes", "wanted", "gpus", "changes", "fitting"),
    [
        ([node()], 1, 1, {}, 0),
        ([node(), node(1, taints=[GPU_NODE_TAINT])], 1, 1, {}, 1),
        ([node(1), node(1)], 1, 2, {}, 0),
        ([node(2)], 2, 2, {}, 1),
        ([node(2), node(4)], 2, 2, {}, 2),
        ([node(1, unschedulable=True)], 1, 1, {}, 0),
        ([node(1), node(1, {"pool": "a100"})], 1, 1, {"gpu_node_selector": {"pool": "a100"}}, 1),
        ([node(1)], 1, 1, {"gpu_node_selector": {"pool": "a100"}}, 0),
        ([node(1, taints=[TEAM_TAINT])], 1, 1, {}, 0),
        ([node(1, taints=[TEAM_TAINT])], 1, 1, {"gpu_tolerations": [{"key": "team", "value": "radiology"}]}, 1),
        ([node(1, taints=[TEAM_TAINT])], 1, 1, {"gpu_tolerations": [{"key": "team", "value": "cardiology"}]}, 0),
        (
            [node(1, taints=[TEAM_TAINT])],
            1,
            1,
            {"gpu_tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]},
            0,
        ),
        ([node(1, taints=[TEAM_TAINT])], 1, 1, {"gpu_tolerations": [{"operator": "Exists"}]}, 1),
        ([node(1, taints=[{**TEAM_TAINT, "effect": "PreferNoSchedule"}])], 1, 1, {}, 1),
    ],
)
def test_gpu_nodes_are_looked_for(
    nodes: list[dict[str, Any]], wanted: int, gpus: int, changes: dict[str, Any], fitting: int
) -> None:
    class Nodes:
        def request(self, method: str, path: str, body: Any = None, query: Any = None) -> dict[str, Any]:
            assert (method, path) == ("GET", "/api/v1/nodes")
            return {"items": nodes}

    if fitting >= wanted:
        require_gpu_nodes(Nodes(), wanted, gpus, given(**changes))
        return
    with pytest.raises(MissingPrerequisite, match=f"^{fitting} of {len(nodes)} nodes can give a pod {gpus} "):
        require_gpu_nodes(Nodes(), wanted, gpus, given(**changes))


def test_an_account_that_may_not_list_nodes_is_told_and_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    class Closed:
        status = 403

        def request(self, method: str, path: str, body: Any = None, query: Any = None) -> dict[str, Any]:
            raise ApiError(self.status, "nodes is forbidden")

    require_gpu_nodes(Closed(), 1, 1, given())
    assert "may not list nodes" in capfd.readouterr().err
    Closed.status = 500
    with pytest.raises(MissingPrerequisite, match="answers 500"):
        require_gpu_nodes(Closed(), 1, 1, given())


def test_each_volume_is_a_parameter_and_its_tasks_are_the_pipelines() -> None:
    spec = next(iter(yaml.safe_load_all(compiled_pipeline("train").read_text("utf-8"))))
    assert set(VOLUMES) <= set(spec["root"]["inputDefinitions"]["parameters"])
    tasks = {task for used, _, _ in VOLUMES.values() for task in used}
    assert {f"exec-{task}" for task in tasks} <= set(spec["deploymentSpec"]["executors"])
