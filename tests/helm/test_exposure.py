"""Who may reach the pods and whom they may reach, read from what the chart renders as a cluster would read it."""

from __future__ import annotations

from typing import Any

import helm_check
import pytest
import yaml

from pneumonia import contract
from tests.helm.conftest import only

MINIMAL: dict[str, Any] = yaml.safe_load((helm_check.CHART / "ci" / "minimal.yaml").read_text("utf-8"))
S3 = {
    "model": {"source": "s3", "uri": "s3://models/releases/" + "0" * 64},
    "networkPolicy": {"storagePorts": [9000], "storageCidrs": ["10.1.0.0/16"]},
    "s3": {"existingSecret": "keys"},
}
NAMESPACE = "kubernetes.io/metadata.name"
OURS, ELSEWHERE = "default", "somewhere"
HTTP, GRPC, METRICS = contract.HTTP_PORT, contract.GRPC_PORT, contract.METRICS_PORT


def policy(**values: Any) -> dict[str, Any]:
    return dict(only(helm_check.objects({**MINIMAL, **values}), "NetworkPolicy")["spec"])


def visibility(**values: Any) -> str | None:
    metadata = only(helm_check.objects({**MINIMAL, **values}), "InferenceService")["metadata"]
    return dict(metadata.get("labels", {})).get("networking.kserve.io/visibility")


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    return selector is None or selector.get("matchLabels", {}).items() <= labels.items()


def admitted(spec: dict[str, Any], port: int, namespace: str, pod: dict[str, str] | None = None) -> bool:
    """Whether a pod of a namespace may reach a port: some rule names both, as Kubernetes has it."""
    assert "Ingress" in spec["policyTypes"], "without it everybody is admitted"
    for rule in spec["ingress"]:
        if port not in [entry["port"] for entry in rule.get("ports", [{"port": port}])]:
            continue
        for peer in rule.get("from") or [{}]:
            here = "namespaceSelector" in peer or namespace == OURS
            if (
                here
                and matches(peer.get("namespaceSelector"), {NAMESPACE: namespace})
                and matches(peer.get("podSelector"), pod or {})
            ):
                return True
    return False


def test_only_what_is_asked_for_is_visible_outside() -> None:
    assert visibility() == "cluster-local"
    assert visibility(gateway={"exposed": False}) == "cluster-local"
    assert visibility(gateway={"exposed": True}) is None


@pytest.mark.parametrize("port", [HTTP, GRPC])
def test_the_gateway_is_let_in_where_the_service_is_exposed(port: int) -> None:
    labels = dict(yaml.safe_load((helm_check.CHART / "values.yaml").read_text("utf-8"))["gateway"]["podLabels"])
    closed = policy(gateway={"exposed": False, "namespace": "gateways"})
    opened = policy(gateway={"exposed": True, "namespace": "gateways"})
    assert labels
    assert admitted(opened, port, "gateways", labels)
    assert not admitted(closed, port, "gateways", labels)
    assert not admitted(opened, port, "gateways", {"app": "other"})
    assert not admitted(opened, port, ELSEWHERE, labels)
    assert not admitted(opened, METRICS, "gateways", labels)


def test_clients_are_let_in_by_namespace_and_label() -> None:
    own = {"app": "client"}
    assert not admitted(policy(networkPolicy={"sameNamespace": False}), HTTP, OURS, own)
    assert admitted(policy(networkPolicy={"sameNamespace": True}), HTTP, OURS, own)
    assert not admitted(policy(networkPolicy={"sameNamespace": True}), HTTP, ELSEWHERE, own)
    named = policy(networkPolicy={"sameNamespace": False, "clients": [{"namespace": "ward", "podLabels": own}]})
    assert admitted(named, HTTP, "ward", own) and admitted(named, GRPC, "ward", own)
    assert not admitted(named, HTTP, "ward", {"app": "other"}) and not admitted(named, HTTP, ELSEWHERE, own)


def test_the_test_pod_is_let_in_and_nobody_else_with_it() -> None:
    spec = policy(networkPolicy={"sameNamespace": False})
    test = {"app.kubernetes.io/instance": "pneumonia", "app.kubernetes.io/component": "test"}
    assert admitted(spec, HTTP, OURS, test)
    assert not admitted(spec, HTTP, ELSEWHERE, test)


def test_metrics_are_read_from_one_namespace() -> None:
    spec = policy(networkPolicy={"monitoringNamespace": "monitoring"})
    assert admitted(spec, METRICS, "monitoring")
    assert not admitted(spec, METRICS, ELSEWHERE) and not admitted(spec, METRICS, OURS)
    assert not admitted(spec, HTTP, "monitoring")


def test_the_deploy_step_is_let_in_from_its_namespaces() -> None:
    step = {"enabled": True, "serviceAccounts": [{"name": "runner", "namespace": "kubeflow"}]}
    s3 = {**S3, "deployStep": step}
    assert admitted(policy(**s3), HTTP, "kubeflow")
    assert not admitted(policy(**{**s3, "deployStep": {**step, "enabled": False}}), HTTP, "kubeflow")


def test_pods_reach_their_store_and_names_alone() -> None:
    baked, fetched = policy(), policy(**S3)
    assert "Egress" in baked["policyTypes"] and baked["egress"] == []
    assert "Egress" in fetched["policyTypes"]
    names, store = fetched["egress"]
    # OpenShift's network looks at a packet once its address is that of the DNS pod, which listens at 5353.
    assert {(entry["port"], entry["protocol"]) for entry in names["ports"]} == {
        (port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")
    }
    assert [entry["port"] for entry in store["ports"]] == [9000]
    assert [peer["ipBlock"]["cidr"] for peer in store["to"]] == ["10.1.0.0/16"]
