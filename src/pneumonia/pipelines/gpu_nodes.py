"""Whether a cluster has nodes for the GPUs that a run asks for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pneumonia.errors import MissingPrerequisite
from pneumonia.kubernetes import ApiError, Cluster
from pneumonia.training.trainjob import GPU, GPU_TAINT

_REPELS = ("NoSchedule", "NoExecute")


def require_gpu_nodes(cluster: Cluster, wanted: int, gpus: int, parameters: Mapping[str, Any]) -> None:
    """Raises MissingPrerequisite where fewer than `wanted` nodes could ever give a pod `gpus` GPUs.

    parameters: the pipeline's, of which gpu_node_selector and gpu_tolerations decide. GPUs that other pods hold now
    count: they come free. An account that may not list nodes, as of a stock installation, is a line on stderr.
    """
    selector, tolerations = parameters["gpu_node_selector"], [GPU_TAINT, *parameters["gpu_tolerations"]]
    try:
        nodes = cluster.request("GET", "/api/v1/nodes")["items"]
    except ApiError as error:
        if error.status != 403:
            raise MissingPrerequisite(f"list nodes: the cluster answers {error.status} ({error})") from error
        print("check: this account may not list nodes; whether one has GPUs is not looked at", file=sys.stderr)
        return
    fitting = [node for node in nodes if fits(node, gpus, selector, tolerations)]
    if len(fitting) < wanted:
        asked = "".join(f", {key}={value}" for key, value in selector.items())
        raise MissingPrerequisite(
            f"{len(fitting)} of {len(nodes)} nodes can give a pod {gpus} {GPU}{asked}, {wanted} needed; check "
            "gpus, num_nodes, gpu_node_selector and gpu_tolerations, or give gpu_autoscaling=true where such nodes "
            "come when a pod waits for them"
        )


def fits(
    node: Mapping[str, Any], gpus: int, selector: Mapping[str, str], tolerations: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether a pod with this selector and these tolerations could get so many GPUs on an otherwise empty node."""
    labels = node["metadata"].get("labels") or {}
    spec, status = node.get("spec") or {}, node.get("status") or {}
    if spec.get("unschedulable") or any(labels.get(key) != value for key, value in selector.items()):
        return False
    taints = [taint for taint in spec.get("taints") or () if taint.get("effect") in _REPELS]
    if not all(any(_tolerates(item, taint) for item in tolerations) for taint in taints):
        return False
    return int((status.get("allocatable") or {}).get(GPU, 0)) >= gpus


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """As Kubernetes has it: no key tolerates every key, no effect every effect."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    exists = toleration.get("operator") == "Exists"
    if not toleration.get("key"):
        return exists
    return toleration["key"] == taint["key"] and (exists or toleration.get("value", "") == taint.get("value", ""))
