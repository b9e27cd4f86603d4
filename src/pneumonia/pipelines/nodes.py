"""What a Kubeflow run's workflow and its pods' logs say about the product's own steps.

Kubeflow Pipelines 2 makes several nodes of each step: a driver, which resolves its inputs and asks the cache, and an
executor with a pod in it, each once more for every attempt. Names and paths as in Argo Workflows 4 (`nodeStatus.name`)
and in kubeflow/pipelines, backend/src/v2/compiler/argocompiler/container.go.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

WAITING, RUNNING, SUCCEEDED, FAILED = "WAITING", "RUNNING", "SUCCEEDED", "FAILED"
CACHED, SKIPPED, OMITTED = "CACHED", "SKIPPED", "OMITTED"

_DRIVER, _EXECUTOR, _POD = "system-container-driver", "system-container-executor", "system-container-impl"
_ATTEMPT = re.compile(r"\(\d+\)$")
_STATES = {"Succeeded": SUCCEEDED, "Failed": FAILED, "Error": FAILED, "Skipped": SKIPPED, "Omitted": OMITTED}
_WAITS = {
    "ImagePullBackOff": "waits for its image",
    "ErrImagePull": "waits for its image",
    "ErrImageNeverPull": "waits for its image",
    "InvalidImageName": "waits for its image",
    "ImageInspectError": "waits for its image",
    "Unschedulable": "waits for a node",
    "CreateContainerConfigError": "waits for a secret or a setting",
    "ContainerCreating": "waits for its volumes and its container",
    "PodInitializing": "waits for its container",
}
"""What a pod that has not started waits for, by the first word of Argo's message."""


@dataclass(frozen=True)
class Step:
    """A step of a run.

    state: WAITING, RUNNING, SUCCEEDED, FAILED, CACHED (answered by an earlier run), SKIPPED, or OMITTED (what it needs
    failed). seconds: how long its pod ran, or has run so far; None where it has none. reason: why it failed or what it
    waits for. exit_code: the step's own, where its log tells. node, pod: the workflow's and the cluster's name of its
    last pod; empty where there is none.
    """

    name: str
    state: str
    seconds: float | None = None
    reason: str = ""
    exit_code: int | None = None
    node: str = ""
    pod: str = ""


def steps_of(workflow: Mapping[str, Any], now: datetime | None = None) -> tuple[Step, ...]:
    """The steps of an Argo Workflow, in the order they began; those that never will come last."""
    nodes = list(_nodes(workflow))
    drivers = _outermost(nodes, _DRIVER)
    executors = _outermost(nodes, _EXECUTOR)
    paths = {path.removesuffix("-driver") for path in drivers} | executors.keys()
    found = []
    for path in paths:
        driver, executor = drivers.get(f"{path}-driver"), executors.get(path)
        pods = [node for node in nodes if _is(node, _POD) and node["type"] == "Pod" and _inside(node["name"], path)]
        step = _step(driver, executor, pods, now or datetime.now(UTC))
        began = min(str(node.get("startedAt") or "~") for node in (driver, executor) if node)
        found.append(
            (step.state in (SKIPPED, OMITTED), began, replace(step, name=_ATTEMPT.sub("", path).rpartition(".")[2]))
        )
    return tuple(step for *_, step in sorted(found, key=lambda item: (item[0], item[1], item[2].name)))


def limit_of(workflow: Mapping[str, Any], now: datetime | None = None) -> int | None:
    """The most seconds of a run that it has taken; None where it has none, or time left.

    Termination by hand is a limit of 0 to Argo and none here.
    """
    limit = (workflow.get("spec") or {}).get("activeDeadlineSeconds")
    began, ended = (_time((workflow.get("status") or {}).get(key)) for key in ("startedAt", "finishedAt"))
    if not limit or began is None:
        return None
    return int(limit) if ((ended or now or datetime.now(UTC)) - began).total_seconds() >= limit else None


def _nodes(workflow: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Argo packs the nodes of a large workflow."""
    status = workflow.get("status") or {}
    if packed := status.get("compressedNodes"):
        return list(json.loads(gzip.decompress(base64.b64decode(packed))).values())
    return list((status.get("nodes") or {}).values())


def _is(node: Mapping[str, Any], kind: str) -> bool:
    return str(node.get("templateName", "")).endswith(kind)


def _outermost(nodes: Iterable[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Nodes of a kind by path. The attempts of a Retry node, `path(0)`, only stand in where it is missing."""
    found: dict[str, dict[str, Any]] = {}
    for node in sorted((node for node in nodes if _is(node, kind)), key=lambda node: len(node["name"])):
        path = node["name"]
        if _ATTEMPT.sub("", path) not in found:
            found[path] = node
        elif node.get("outputs"):
            found[_ATTEMPT.sub("", path)].setdefault("outputs", node["outputs"])
    return found


def _inside(name: str, path: str) -> bool:
    return name.startswith((f"{path}(", f"{path}."))


def _step(
    driver: Mapping[str, Any] | None, executor: Mapping[str, Any] | None, pods: list[dict[str, Any]], now: datetime
) -> Step:
    """One step without its name."""
    driven = _state(driver)
    if executor is None or (_state(executor) in (SKIPPED, OMITTED) and driven == FAILED):
        if driven == FAILED:
            return Step("", FAILED, reason=f"Kubeflow's driver failed: {_message(driver)}".removesuffix(": "))
        if driven in (SKIPPED, OMITTED):
            return Step("", driven)
        return Step("", WAITING, reason=_wait(_message(driver)) or "waits for Kubeflow's driver")
    state = _state(executor)
    if not pods:
        cached = _output(driver, "cached-decision") == "true"
        return Step("", CACHED if cached and state in (SUCCEEDED, SKIPPED) else state, reason=_message(executor)
                    if state == FAILED else "")  # fmt: skip
    pod = max(pods, key=lambda node: (str(node.get("startedAt") or ""), node["name"]))
    last = Step("", state, node=str(pod["id"]), pod=_pod_name(pod))
    if state == RUNNING and pod["phase"] == "Pending":
        return replace(last, state=WAITING, reason=_wait(_message(pod)) or "waits for its pod")
    reason = (_message(pod) or _message(executor)) if state == FAILED else ""
    return replace(last, seconds=_seconds(pod, now), reason=reason)


def _state(node: Mapping[str, Any] | None) -> str:
    return _STATES.get(str(node.get("phase")), RUNNING) if node else RUNNING


def _message(node: Mapping[str, Any] | None) -> str:
    return " ".join(str((node or {}).get("message") or "").split())


def _output(node: Mapping[str, Any] | None, name: str) -> str:
    parameters = ((node or {}).get("outputs") or {}).get("parameters") or ()
    return next((str(item.get("value")) for item in parameters if item["name"] == name), "")


def _wait(message: str) -> str:
    word = re.split(r"[:\s]", message, maxsplit=1)[0]
    return f"{_WAITS[word]}: {message}" if word in _WAITS else message


def _seconds(node: Mapping[str, Any], now: datetime) -> float | None:
    began, ended = (_time(node.get(key)) for key in ("startedAt", "finishedAt"))
    return round(((ended or now) - began).total_seconds(), 1) if began else None


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None


def _pod_name(node: Mapping[str, Any]) -> str:
    """WORKFLOW-TEMPLATE-HASH, of a node whose id is WORKFLOW-HASH."""
    workflow, _, digits = str(node["id"]).rpartition("-")
    return f"{workflow}-{node['templateName']}-{digits}"


_LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.|\[KFP Executor |time=\S+ level=|Error: exit status \d+$")
_OPENS = re.compile(r"(Got executor_input:|ExecutorOutput: \{)$")
_EXIT = re.compile(r"failed to execute component: exit status (\d+)")


def own_lines(log: str) -> Iterator[str]:
    """The lines of a pod's log that the step wrote, without those of Kubeflow's launcher around them."""
    in_json = False
    for line in log.splitlines():
        if in_json:
            in_json = line != "}"
        elif _LAUNCHER.match(line):
            in_json = bool(_OPENS.search(line))
        else:
            yield line


def with_log(step: Step, log: str) -> Step:
    """A failed step with the reason and the exit code that stand in its log; the launcher's own code is always 1."""
    lines = [line for line in own_lines(log) if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    codes = _EXIT.findall(log)
    if not codes:
        # Killed from outside: what the node says is the cause, whatever the step said last.
        return replace(step, reason=": ".join(filter(None, [step.reason, *errors[-1:]])))
    return replace(step, reason=(errors or lines or [step.reason])[-1].strip(), exit_code=int(codes[-1]))
