"""Prerequisites: pinned, built by kustomize where they are ours, and in step with the documents and scripts."""

from __future__ import annotations

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
SCRIPTS = sorted((MANIFESTS / "kind").glob("*.sh"))


def build(folder: str) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, whose kustomize builds the overlays, is not installed")
    text = subprocess.run([kubectl, "kustomize", str(MANIFESTS / folder)], capture_output=True, text=True, check=True)
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
        for item in yaml.safe_load(path.read_text("utf-8"))["resources"]:
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
        url = yaml.safe_load((MANIFESTS / "bases" / name / "kustomization.yaml").read_text("utf-8"))["resources"][0]
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


@pytest.mark.parametrize("folder", OURS[:2])
def test_kserve_routes_through_the_gateway_that_is_made(folder: str) -> None:
    import json

    items = build(folder)
    gateway = next(item for item in items if item["kind"] == "Gateway")["metadata"]
    config = next(item for item in items if item["metadata"]["name"] == "inferenceservice-config")["data"]
    ingress = json.loads(config["ingress"])
    assert ingress["enableGatewayApi"] is True
    assert ingress["kserveIngressGateway"] == f"{gateway['namespace']}/{gateway['name']}"
    assert json.loads(config["deploy"]) == {"defaultDeploymentMode": "Standard"}


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
