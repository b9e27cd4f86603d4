"""The commands of docs/operate.md, each run as it is printed, on a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.bundles import xray
from tests.cluster.asking import Asking
from tests.cluster.commands import ROOT, block, here
from tests.cluster.conftest import NAME, Namespace, Releases, eventually

DOCUMENT = "docs/operate.md"


@pytest.fixture(scope="module", autouse=True)
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """kubectl and helm as a reader has them: with the context chosen."""
    context = os.environ.get("CLUSTER_CONTEXT")
    folder = tmp_path_factory.mktemp("bin")
    if context:
        for tool, flag in (("kubectl", "--context"), ("helm", "--kube-context")):
            script = folder / tool
            script.write_text(f'#!/bin/sh\nPATH=${{PATH#*:}} exec {tool} {flag} {context} "$@"\n')
            script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield


def shell(line: str, timeout_s: float = 700) -> str:
    """A documented line by the shell that a reader types it into."""
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{line}: {done.stderr}{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def service(namespace: Namespace, releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    """Installed by the commands for a bucket."""
    repository, _, tag = os.environ["CLUSTER_IMAGE"].rpartition(":")
    s3 = urlsplit(os.environ["CLUSTER_S3"])
    create, secret, annotate, install = block(DOCUMENT, "kubectl -n pneumonia create secret")
    assert create.startswith("kubectl create namespace ")
    shell(here(secret, namespace.name, **{
        "<key>": os.environ["AWS_ACCESS_KEY_ID"], "<secret>": os.environ["AWS_SECRET_ACCESS_KEY"],
    }))  # fmt: skip
    https = f"usehttps={int(s3.scheme == 'https')}"
    shell(here(annotate, namespace.name, **{"s3.example.com": s3.netloc, "usehttps=1": https}))
    given = {"registry.example.com/pneumonia-triton": repository, "s3://models/releases/<digest>": releases.uris[0]}
    # What a reader's own values file would say of this cluster.
    more = tmp_path_factory.mktemp("values") / "values.yaml"
    more.write_text(
        f"image: {{tag: '{tag}'}}\nnetworkPolicy: {{storagePorts: [443, {s3.port or 443}]}}\n"
        "resources: {requests: {cpu: 100m, memory: 256Mi}}\n"
    )
    shell(f"{here(install, namespace.name, **given)} -f {more}")
    _, wait, test = block(DOCUMENT, "helm install pneumonia helm/pneumonia -n pneumonia --create-namespace")
    shell(here(wait, namespace.name))
    assert "Succeeded" in shell(here(test, namespace.name))
    return namespace


def pods(service: Namespace) -> set[str]:
    found = service.get("pods", "-l", f"serving.kserve.io/inferenceservice={NAME}")
    return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}


def test_upgrade(service: Namespace, tmp_path: Path) -> None:
    values, upgrade, test = block(DOCUMENT, "helm get values")
    file = str(tmp_path / "values.yaml")
    shell(here(values, service.name, **{"values.yaml": file}))
    shell(here(upgrade, service.name, **{"values.yaml": file}))
    service.ready()
    assert "Succeeded" in shell(here(test, service.name))


def test_restart_replaces_every_pod_and_takes_no_request_with_it(service: Namespace) -> None:
    before = pods(service)
    (restart,) = block(DOCUMENT, "helm upgrade pneumonia helm/pneumonia -n pneumonia --reuse-values")
    with Asking(f"http://{NAME}.{service.name}.svc", xray(1)) as asking:
        shell(here(restart, service.name))
        eventually(lambda: pods(service).isdisjoint(before), "every pod is a new one", 120)
        service.ready()
    print(asking.said())
    assert asking.asked > 50 and not asking.failures, asking.said()


def test_by_hand(service: Namespace) -> None:
    """What docs/releases.md prints for looking."""
    lines = block("docs/releases.md", "pneumoctl model list")
    (show,) = [line for line in lines if line.startswith("pneumoctl model show")]
    bin_folder = Path(sys.executable).parent
    said = shell(f"PATH={bin_folder}:$PATH; {here(show.partition('#')[0], service.name)}")
    assert '"ready": true' in said and service.stable() in said
