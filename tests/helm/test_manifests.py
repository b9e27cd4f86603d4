"""Prerequisites: pinned, built by kustomize where they are ours, and in step with the documents and scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import helm_check
import pytest
import yaml

from tests.helm.conftest import ROOT

MANIFESTS = ROOT / "manifests"
OURS = ["overlays/kind/2-platform", "overlays/production/2-platform", "bases/namespaces"]
EXAMPLES = ["examples/gpu-time-slicing", "examples/gateway-auth"]
THIRD_PARTIES = ("Gateway", "GatewayClass", "EnvoyProxy", "ClusterStorageContainer", "SecurityPolicy")
"""Kinds whose definitions are not at hand."""
RECORDINGS = Path(os.environ.get("PNEUMONIA_RECORDINGS") or ROOT.parent / "shared" / "recordings") / "kserve"
SCRIPTS = sorted((MANIFESTS / "kind").glob("*.sh"))


def build(folder: str, root: Path = MANIFESTS) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, whose kustomize builds the overlays, is not installed")
    text = subprocess.run([kubectl, "kustomize", str(root / folder)], capture_output=True, text=True, check=True)
    return [item for item in yaml.safe_load_all(text.stdout) if item]


def remote_resources() -> list[str]:
    files = MANIFESTS.rglob("kustomization.yaml")
    resources = [item for path in files for item in yaml.safe_load(path.read_text("utf-8")).get("resources", [])]
    return [item for item in resources if item.startswith("https://")]


@pytest.mark.parametrize("folder", [*OURS, *EXAMPLES])
def test_what_is_ours_builds_to_valid_and_restricted_objects(folder: str) -> None:
    items = build(folder)
    found = [line for item in items for line in helm_check.restricted_problems(item)]
    known = [item for item in items if item["kind"] not in THIRD_PARTIES]
    assert [*found, *(line for item in known for line in helm_check.schema_problems(item))] == []


def test_every_local_resource_of_every_kustomization_exists() -> None:
    for path in MANIFESTS.rglob("kustomization.yaml"):
        for item in yaml.safe_load(path.read_text("utf-8")).get("resources", []):
            assert item.startswith("https://") or (path.parent / item).exists(), f"{path}: {item}"


def test_versions_are_pinned_and_in_the_documents() -> None:
    found = remote_resources()
    assert len(found) >= 6
    for url in found:
        version = re.search(r"(?:/download/|\?ref=)(v?\d+\.\d+\.\d+)\b", url)
        assert version, f"{url}: no version"
        assert version[1] in (MANIFESTS / "README.md").read_text("utf-8"), url
    matrix = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    for name in ("kserve", "gateway-api", "pipelines", "trainer"):
        resources = yaml.safe_load((MANIFESTS / "bases" / name / "kustomization.yaml").read_text("utf-8"))["resources"]
        url = next(item for item in resources if item.startswith("https://"))
        assert re.search(r"v?\d+\.\d+\.\d+", url)[0] in matrix, url  # type: ignore[index]


def test_images_of_ours_have_a_version() -> None:
    images = [
        container["image"]
        for item in build(OURS[0])
        for _, pod in helm_check.pods(item)
        for container in pod["containers"]
    ]
    assert len(images) == 2
    assert all(re.search(r":v?\d+\.\d+", image) for image in images)


STAND_INS = {
    # What the releases by URL hold, as far as it meets what is ours.
    "kserve": [
        {"apiVersion": "v1", "kind": "ConfigMap",
         "metadata": {"name": "inferenceservice-config", "namespace": "kserve"},
         "data": {f"key{number}": "{}" for number in range(14)} | {"deploy": "{}", "ingress": "{}"}},
        {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ClusterStorageContainer",
         "metadata": {"name": "default", "namespace": "kserve"},
         "spec": {"container": {"name": "storage-initializer", "image": "kserve/storage-initializer:v0.21.0"},
                  "supportedUriFormats": [{"prefix": "s3://"}]}},
    ],
    "gateway-api": [
        {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
         "metadata": {"name": f"{kind}.gateway.networking.k8s.io"}} for kind in ("gateways", "httproutes")
    ],
    "envoy-gateway": [
        {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": name}}
        for name in ("gateways.gateway.networking.k8s.io", "envoyproxies.gateway.envoyproxy.io")
    ],
}  # fmt: skip


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The manifests with stand-ins for what they name by URL."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    for path in (tmp_path / "manifests" / "bases").glob("*/kustomization.yaml"):
        text = path.read_text("utf-8")
        if re.search(r"https://\S+", text):
            (path.parent / "remote.yaml").write_text(yaml.safe_dump_all(STAND_INS.get(path.parent.name, [])))
            path.write_text(re.sub(r"https://\S+", "remote.yaml", text))
    return tmp_path / "manifests"


@pytest.mark.parametrize("overlay", ["kind", "production"])
def test_a_second_owner_takes_nothing_from_kserve(whole: Path, overlay: str) -> None:
    """All 16 keys come from the kustomization that changes two of them, and no other one names the object."""
    first, second = (build(f"overlays/{overlay}/{step}", whole) for step in ("1-operators", "2-platform"))
    config = next(item for item in first if item["metadata"]["name"] == "inferenceservice-config")["data"]
    assert len(config) == 16
    ingress = json.loads(config["ingress"])
    gateway = next(item for item in second if item["kind"] == "Gateway")
    assert ingress["enableGatewayApi"] is True
    # KServe's controller stops without it, whatever serves the gateway.
    assert ingress["ingressGateway"]
    named = gateway["metadata"]
    assert ingress["kserveIngressGateway"] == f"{named['namespace']}/{named['name']}"
    assert json.loads(config["deploy"]) == {"defaultDeploymentMode": "Standard"}
    storage = next(item for item in first if item["kind"] == "ClusterStorageContainer")["spec"]
    assert storage["supportedUriFormats"] and storage["container"]["image"]
    assert storage["container"]["securityContext"]["runAsNonRoot"] is True
    keys = [(item["kind"], item["metadata"]["name"]) for item in (*first, *second)]
    assert len(keys) == len(set(keys))
    assert ("Namespace", "kserve") in keys and ("ConfigMap", "platform") not in keys


def test_domain_scheme_and_class_are_one_value_each(whole: Path) -> None:
    platform = whole / "overlays" / "production" / "platform" / "platform.yaml"
    text = platform.read_text("utf-8")
    for old, new in (("example.com", "xray.hospital.org"), ("scheme: https", "scheme: http"), ("envoy\n", "traefik\n")):
        assert text.count(f" {old}") == 1
        text = text.replace(f" {old}", f" {new}")
    platform.write_text(text, "utf-8")
    first, second = (build(f"overlays/production/{step}", whole) for step in ("1-operators", "2-platform"))
    config = next(item for item in first if item["metadata"]["name"] == "inferenceservice-config")["data"]
    ingress = json.loads(config["ingress"])
    assert (ingress["ingressDomain"], ingress["urlScheme"]) == ("xray.hospital.org", "http")
    assert ingress["ingressClassName"] == "traefik"
    gateway = next(item for item in second if item["kind"] == "Gateway")["spec"]
    assert gateway["gatewayClassName"] == "traefik"
    assert [listener["hostname"] for listener in gateway["listeners"]] == ["*.xray.hospital.org"]


def test_mlflow_answers_at_its_address_with_the_port() -> None:
    (mlflow,) = [
        item for item in build(OURS[0]) if item["kind"] == "Deployment" and item["metadata"]["name"] == "mlflow"
    ]
    (container,) = mlflow["spec"]["template"]["spec"]["containers"]
    (allowed,) = [word for word in container["args"] if word.startswith("--allowed-hosts=")]
    hosts = allowed.partition("=")[2].split(",")
    security = pytest.importorskip("mlflow.server.security_utils")
    for host in ("mlflow.pneumonia-platform:5000", "mlflow.pneumonia-platform.svc:5000", "localhost:5000", "mlflow"):
        assert security.is_allowed_host_header(hosts, host), host
    assert not security.is_allowed_host_header(hosts, "elsewhere:5000")


def test_the_key_is_asked_for_on_every_route() -> None:
    (policy,) = build("examples/gateway-auth")
    (selector,) = policy["spec"]["targetSelectors"]
    recorded = RECORDINGS / "07-promoted.json"
    if not recorded.is_file():
        pytest.skip(f"no recording at {recorded}")
    objects = json.loads(recorded.read_text("utf-8"))["objects"]
    routes = [item for item in objects if item["kind"] == selector["kind"]]
    assert len(routes) == 2
    assert all(selector["matchLabels"].items() <= route["metadata"]["labels"].items() for route in routes)


def test_the_node_port_of_the_gateway_is_the_one_that_kind_maps() -> None:
    kind = yaml.safe_load((ROOT / "kind-config.yaml").read_text("utf-8"))
    mapped = {item["containerPort"] for node in kind["nodes"] for item in node.get("extraPortMappings", [])}
    text = (MANIFESTS / "overlays" / "kind" / "2-platform" / "envoy-proxy.yaml").read_text("utf-8")
    assert {int(port) for port in re.findall(r"nodePort: (\d+)", text)} <= mapped


def test_the_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{ROOT / '.venv' / 'bin'}:{Path(helm_check.sys.executable).parent}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["up", "load", "demo", "down"])
def test_a_missing_tool_is_named(tmp_path: Path, script: str) -> None:
    for tool in ("dirname", "cat", "bash"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    done = subprocess.run(
        [tmp_path / "bash", str(MANIFESTS / "kind" / f"{script}.sh")], env={"PATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 4
    assert re.search(r"error: (docker|kind) is not installed; manifests/README.md", done.stderr)
