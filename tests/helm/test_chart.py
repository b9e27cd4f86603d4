"""What the chart renders: valid objects, locked-down pods, and a promoted model that an upgrade leaves alone."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_check
import pytest
import yaml

from tests.helm.conftest import ROOT, nested, only

CI = sorted((helm_check.CHART / "ci").glob("*.yaml"))
OLD, NEW = "a" * 64, "b" * 64
S3 = nested(
    {
        "image.repository": "registry.example.com/pneumonia-triton",
        "model.source": "s3",
        "model.uri": f"s3://models/releases/{OLD}",
    }
)


def ci(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((helm_check.CHART / "ci" / f"{name}.yaml").read_text("utf-8"))
    return values


def container(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The server's container, wherever it stands."""
    predictor = only(items, "InferenceService")["spec"]["predictor"]
    found: list[dict[str, Any]] = predictor.get("containers") or only(items, "ServingRuntime")["spec"]["containers"]
    assert len(found) == 1
    return found[0]


def with_live(tmp_path: Path, live: dict[str, Any]) -> Path:
    """A copy of the chart whose look-up finds `live`; without a cluster Helm's own finds nothing."""
    chart = tmp_path / "pneumonia"
    shutil.copytree(helm_check.CHART, chart)
    helpers = chart / "templates" / "_helpers.tpl"
    text, count = re.subn(r"\{\{- lookup .*-\}\}", lambda _: json.dumps(live), helpers.read_text("utf-8"))
    assert count == 1
    helpers.write_text(text, "utf-8")
    return chart


def test_the_examples_are_all_there() -> None:
    names = {path.stem for path in CI}
    assert names >= {"cpu-default", "gpu-tensorrt", "s3", "pvc", "keda", "gateway", "full", "minimal"}


@pytest.mark.parametrize("path", CI, ids=lambda path: str(path.stem))
def test_every_example_renders_to_valid_and_restricted_objects(path: Path, crds: Path) -> None:
    assert helm_check.problems(yaml.safe_load(path.read_text("utf-8"))) == []


def test_the_check_sees_unknown_fields_and_open_pods(crds: Path) -> None:
    items = helm_check.objects(ci("full"))
    service = copy.deepcopy(only(items, "InferenceService"))
    service["spec"]["predictor"]["minReplica"] = 1
    assert "minReplica" in "".join(helm_check.schema_problems(service))
    budget = copy.deepcopy(only(items, "PodDisruptionBudget"))
    budget["spec"]["selectors"] = {}
    assert "selectors" in "".join(helm_check.schema_problems(budget))
    for key, value in (("readOnlyRootFilesystem", False), ("runAsUser", 0), ("capabilities", {"drop": []})):
        runtime = copy.deepcopy(only(items, "ServingRuntime"))
        runtime["spec"]["containers"][0]["securityContext"][key] = value
        assert list(helm_check.restricted_problems(runtime)), key
    del service["spec"]["predictor"]["securityContext"]["seccompProfile"]
    assert "seccomp" in "".join(helm_check.restricted_problems(service))


def test_a_baked_release_uses_containers_and_another_path_than_kserve() -> None:
    items = helm_check.objects(ci("minimal"))
    predictor = only(items, "InferenceService")["spec"]["predictor"]
    assert "model" not in predictor
    assert container(items)["name"] == "kserve-container"
    assert not container(items)["args"][0].startswith("/mnt/models")
    assert "ServingRuntime" not in {item["kind"] for item in items}


@pytest.mark.parametrize("name", ["minimal", "s3", "gpu-tensorrt"])
def test_the_server_is_probed_on_the_ensemble_and_reports_to_nobody(name: str) -> None:
    server = container(helm_check.objects(ci(name)))
    paths = {key: server[f"{key}Probe"]["httpGet"]["path"] for key in ("startup", "readiness", "liveness")}
    assert paths["startup"] == paths["readiness"] == "/v2/models/pneumonia_detection/ready"
    assert paths["liveness"] == "/v2/health/live"
    assert {"name": "ORT_DISABLE_TELEMETRY", "value": "1"} in server["env"]
    assert server["ports"][0]["containerPort"] == 8000
    assert {mount["mountPath"] for mount in server["volumeMounts"]} == {"/tmp", "/dev/shm"}


def test_the_gpu_variant() -> None:
    items = helm_check.objects(ci("gpu-tensorrt"))
    predictor = only(items, "InferenceService")["spec"]["predictor"]
    assert container(items)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert predictor["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    assert predictor["deploymentStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_no_second_scaler_and_no_generated_name_is_selected() -> None:
    for path in CI:
        items = helm_check.objects(yaml.safe_load(path.read_text("utf-8")))
        assert {item["kind"] for item in items}.isdisjoint({"HorizontalPodAutoscaler", "ScaledObject", "HTTPRoute"})
        selected = {"serving.kserve.io/inferenceservice": only(items, "InferenceService")["metadata"]["name"]}
        assert only(items, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == selected
        services = {item["metadata"]["name"]: item for item in items if item["kind"] == "Service"}
        (name,) = selected.values()
        assert set(services) == {name, f"{name}-metrics"}
        assert services[f"{name}-metrics"]["spec"]["selector"] == selected
        # KServe removes Services with its own labels that it does not expect.
        labels = {label for item in services.values() for label in item["metadata"]["labels"]}
        assert not [label for label in labels if "kserve" in label or label == "component"]


def test_the_service_for_clients_follows_what_is_served(tmp_path: Path) -> None:
    def selector(values: dict[str, Any], **where: Any) -> dict[str, str]:
        items = helm_check.objects(values, **where)
        service = next(item for item in items if (item["kind"], item["metadata"]["name"]) == ("Service", "pneumonia"))
        found: dict[str, str] = service["spec"]["selector"]
        return found

    assert selector(ci("minimal")) == {"app": "isvc.pneumonia-predictor"}
    live = promoted(canary=True)
    followed = {"app": "isvc.pneumonia-m-bbbbbbbbbbbb-predictor"}
    assert selector(S3, chart=with_live(tmp_path / "share", live)) == followed
    live["spec"]["canary"][0]["trafficPercent"] = 100
    assert selector(S3, chart=with_live(tmp_path / "all", live)) == {"app": "isvc.pneumonia-m-c-predictor"}


def test_a_registry_takes_the_place_of_the_one_in_every_image() -> None:
    text = "".join(helm_check.render(ci("full")).values())
    images = {line.split("image:")[1].strip() for line in text.splitlines() if line.strip().startswith("image:")}
    assert images == {f"mirror.example.com:5000/team/pneumonia-triton@sha256:{OLD}"}


def test_nothing_but_the_smoke_test_gets_a_token() -> None:
    for path in CI:
        items = helm_check.objects(yaml.safe_load(path.read_text("utf-8")))
        assert only(items, "InferenceService")["spec"]["predictor"]["automountServiceAccountToken"] is False
        assert all(item["automountServiceAccountToken"] is False for item in items if item["kind"] == "ServiceAccount")
        assert only(items, "Pod")["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_secrets_stand_in_the_release_only_when_asked_for() -> None:
    assert "Secret" in {item["kind"] for item in helm_check.objects(ci("s3"))}
    for name in ("gateway", "full", "gpu-tensorrt"):
        assert "Secret" not in {item["kind"] for item in helm_check.objects(ci(name))}
    assert {"name": "pneumonia-s3"} in next(
        item["secrets"]
        for item in helm_check.objects(ci("gpu-tensorrt"))
        if item["kind"] == "ServiceAccount" and item["metadata"]["name"] == "pneumonia"
    )


def test_the_deploy_step_may_touch_one_service_and_its_history() -> None:
    role = next(item for item in helm_check.objects(ci("s3")) if item["metadata"]["name"] == "pneumonia-deploy")
    writing = [rule for rule in role["rules"] if set(rule["verbs"]) - {"get", "list", "watch"}]
    assert writing == [
        {
            "apiGroups": ["serving.kserve.io"],
            "resources": ["inferenceservices"],
            "resourceNames": ["pneumonia"],
            "verbs": ["get", "watch", "patch"],
        },
        {"apiGroups": [""], "resources": ["services"], "resourceNames": ["pneumonia"], "verbs": ["patch"]},
        {
            "apiGroups": ["autoscaling"],
            "resources": ["horizontalpodautoscalers"],
            "verbs": ["get", "list", "delete"],
        },
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["pneumonia-releases"],
            "verbs": ["get", "patch"],
        },
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
    ]


def promoted(canary: bool) -> dict[str, Any]:
    live = only(helm_check.objects(S3), "InferenceService")
    live["spec"]["predictor"]["name"] = "m-bbbbbbbbbbbb"
    live["spec"]["predictor"]["model"]["storageUri"] = f"s3://models/releases/{NEW}"
    if canary:
        live["spec"]["canary"] = [
            {
                "trafficPercent": 5,
                "predictor": {
                    "name": "m-c",
                    "model": {
                        "name": "kserve-container",
                        "modelFormat": {"name": "triton"},
                        "storageUri": f"s3://models/releases/{'c' * 64}",
                    },
                },
            }
        ]
    return live


@pytest.mark.parametrize("canary", [False, True])
def test_an_upgrade_leaves_the_promoted_model_and_its_canary(tmp_path: Path, canary: bool) -> None:
    live = promoted(canary)
    chart = with_live(tmp_path, live)
    after = only(helm_check.objects(S3 | {"resources": {"limits": {"cpu": "4"}}}, chart=chart), "InferenceService")
    assert after["spec"]["predictor"]["name"] == "m-bbbbbbbbbbbb"
    assert after["spec"]["predictor"]["model"]["storageUri"].endswith(NEW)
    assert after["spec"].get("canary") == live["spec"].get("canary")
    notes = helm_check.render(S3, chart=chart)["pneumonia/templates/NOTES.txt"]
    assert "is not served" in notes
    assert "http://pneumonia.pneumonia.svc" in notes


def test_with_gitops_the_values_win_over_the_cluster(tmp_path: Path) -> None:
    values = copy.deepcopy(S3)
    values["model"]["managedBy"] = "values"
    after = only(helm_check.objects(values, chart=with_live(tmp_path, promoted(True))), "InferenceService")
    assert after["spec"]["predictor"]["model"]["storageUri"].endswith(OLD)
    assert "canary" not in after["spec"]


def test_a_baked_release_cannot_replace_a_model_with_a_canary(tmp_path: Path) -> None:
    import helm_python

    with pytest.raises(helm_python.HelmError, match="has a canary"):
        helm_check.render(ci("minimal"), chart=with_live(tmp_path, promoted(True)))


def test_generated_files_are_in_step_with_the_values() -> None:
    done = subprocess.run([sys.executable, "tools/chart_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_value_without_a_comment_is_refused(tmp_path: Path) -> None:
    import chart_docs

    shutil.copytree(helm_check.CHART, tmp_path / "chart")
    with (tmp_path / "chart" / "values.yaml").open("a") as values:
        values.write("\nnew: 1\n")
    with pytest.raises(SystemExit, match="new has no comment"):
        chart_docs.generate(tmp_path / "chart")


def test_every_alert_has_its_section_in_the_guide() -> None:
    rules = only(helm_check.objects(ci("full")), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert len(rules) == 5
    headings = {
        line.lstrip("# ").strip().lower()
        for line in (ROOT / "docs" / "operate.md").read_text("utf-8").splitlines()
        if line.startswith("#")
    }
    for rule in rules:
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (ROOT / path).is_file()
        assert anchor == rule["alert"].lower()
        assert anchor in headings


def test_the_package_holds_what_it_renders_and_no_byte_code(tmp_path: Path) -> None:
    import tarfile

    import helm_python

    (cache := helm_check.CHART / "files" / "__pycache__").mkdir(exist_ok=True)
    (cache / "smoke_test.cpython-311.pyc").touch()
    archive = helm_python.package(helm_check.CHART, destination=tmp_path)
    with tarfile.open(archive) as opened:
        names = {name.removeprefix("pneumonia/") for name in opened.getnames()}
    assert {"values.schema.json", "files/contract.json", "files/smoke_test.py", "files/dashboard.json"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("ci/")]
    shutil.unpack_archive(archive, tmp_path / "unpacked", "gztar")
    assert helm_check.objects(ci("full"), chart=tmp_path / "unpacked" / "pneumonia") == helm_check.objects(ci("full"))
