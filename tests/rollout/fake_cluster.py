"""An API server with KServe in memory, for tests of rollouts; its rules are those of KServe's webhook and controller.

Read in KServe's sources of August 2026 (inference_service_validation.go, components/predictor.go,
ingress/httproute_reconciler.go); `tests/rollout/test_fake_cluster.py` says each of them as a test, and
`test_kserve_recordings.py` holds the shapes of its objects against those of a real cluster.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pneumonia.errors import ServerUnavailable
from pneumonia.inference.predictor import Predictor
from pneumonia.kubernetes import ApiError
from pneumonia.rollout.service import LONGEST_LABEL, MODE_ANNOTATION, SCALER_ANNOTATION, SERVICE_LABEL
from tests.fake_predictor import FakePredictor

Key = tuple[str, str, str]
"""Kind, namespace, name."""
_PATH = re.compile(r"/(?:api/v1|apis/([^/]+)/[^/]+)/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?$")
_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
NO_ROOM = (
    "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available"
)
_FIXED = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling", "workerSpec")


@dataclass
class Pod:
    """A server that loaded its release when it started, and answers with that until it restarts."""

    name: str
    uri: str
    ready_at: int
    predictor: Predictor | None
    scheduled: bool = True


@dataclass
class Workload:
    """A Deployment. generation goes up with each change; observed and the pods follow later."""

    name: str
    namespace: str
    uri: str
    replicas: int
    labels: dict[str, str]
    generation: int = 1
    observed: int = 0
    pods: list[Pod] = field(default_factory=list)
    refused: bool = False


class FakeCluster:
    """`request` speaks Kubernetes' paths. Time passes by one with each request; controllers act `lag` requests late.

    load: what a pod does at its start with its storageUri; an exception is a crash. gateway: HTTPRoutes share traffic.
    kserve: 0.21, 0.20 (canaries without weights), 0.15 (no canaries) or none (no CRD). forbidden: (verb, kind) pairs
    that the caller has no right to. room: pods that the nodes take, the others wait. quota: pods that may exist at all.
    last_words: what a container that crashed had left as its termination message.
    """

    def __init__(
        self,
        load: Callable[[str], Predictor] | None = None,
        *,
        gateway: bool = True,
        kserve: str = "0.21",
        lag: int = 2,
        forbidden: frozenset[tuple[str, str]] = frozenset(),
        room: int | None = None,
        quota: int | None = None,
        last_words: str = "",
    ) -> None:
        self.load = load or (lambda uri: FakePredictor(model_id=uri))
        self.gateway = gateway
        self.kserve = kserve
        self.lag = lag
        self.forbidden = forbidden
        self.room = room
        self.quota = quota
        self.last_words = last_words
        self.now = 0
        self.log: list[str] = []
        self.objects: dict[Key, dict[str, Any]] = {}
        self.workloads: dict[tuple[str, str], Workload] = {}
        self._due: dict[Key, int] = {}
        self._routes: dict[Key, list[tuple[int, list[dict[str, Any]]]]] = {}
        self._versions = itertools.count(1)
        self._pods = itertools.count(1)

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """See `pneumonia.kubernetes.Cluster`."""
        self.log.append(f"{method} {path}")
        self.tick()
        match = _PATH.match(path)
        if match is None or (match[1] == "serving.kserve.io" and self.kserve == "none") or self._no_routes(match[3]):
            raise ApiError(404, "404 page not found", kind_known=False)
        namespace, kind, name = match[2], match[3], match[4]
        verb = _VERBS.get(method) or ("get" if name else "list")
        if (verb, kind) in self.forbidden:
            raise ApiError(403, f'{kind} "{name or ""}" is forbidden: User "test" cannot {verb} resource "{kind}"')
        if verb == "list":
            wanted = [pair.partition("=") for pair in (query or {}).get("labelSelector", "").split(",") if pair]
            fields = (query or {}).get("fieldSelector", "")
            return {"items": list(self._list(kind, namespace, {key: value for key, _, value in wanted}, fields))}
        if verb == "create":
            return self._create(kind, namespace, dict(body or {}))
        found = self._get((kind, namespace, name))
        if found is None:
            raise ApiError(404, f'{kind} "{name}" not found')
        if verb == "delete":
            del self.objects[kind, namespace, name]
            return {"kind": "Status", "status": "Success"}
        return copy.deepcopy(found) if verb == "get" else self._patch((kind, namespace, name), found, dict(body or {}))

    def _no_routes(self, kind: str) -> bool:
        return kind == "httproutes" and not self.gateway

    # Objects

    def _create(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        key = (kind, namespace, body["metadata"]["name"])
        if key in self.objects:
            raise ApiError(409, f'{kind} "{key[2]}" already exists')
        body = copy.deepcopy(body)
        body["metadata"].update(namespace=namespace, generation=0, uid=f"uid-{key[2]}")
        return self._store(key, body)

    def _patch(self, key: Key, found: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        version = body.get("metadata", {}).get("resourceVersion")
        if version not in (None, found["metadata"]["resourceVersion"]):
            raise ApiError(409, f'Operation cannot be fulfilled on {key[0]} "{key[2]}": the object has been modified')
        return self._store(key, merge_patch(found, body), found)

    def _store(self, key: Key, new: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
        if key[0] == "inferenceservices":
            if self.kserve < "0.20":
                # A schema that does not know a field drops it without a word.
                new["spec"].pop("canary", None)
                new["spec"]["predictor"].pop("name", None)
            if problem := refusal(new, old):
                status, message = problem
                raise ApiError(status, message)
        if old is None or old.get("spec") != new.get("spec"):
            new["metadata"]["generation"] = new["metadata"].get("generation", 0) + 1
            self._due[key] = self.now + self.lag
        new["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[key] = new
        return copy.deepcopy(new)

    def _get(self, key: Key) -> dict[str, Any] | None:
        kind, namespace, name = key
        if kind == "deployments":
            workload = self.workloads.get((namespace, name))
            return None if workload is None else self._deployment(workload)
        if kind == "services" and (namespace, name) in self.workloads:
            port = {"name": "http1", "port": 80, "targetPort": 8000}
            return {"metadata": {"name": name}, "spec": {"clusterIP": "10.0.0.1", "ports": [port]}}
        return self.objects.get(key)

    def _list(self, kind: str, namespace: str, labels: Mapping[str, str], fields: str = "") -> Iterator[dict[str, Any]]:
        if kind == "pods":
            for workload in self.workloads.values():
                if workload.namespace == namespace and labels.items() <= workload.labels.items():
                    yield from map(self._pod_object, workload.pods)
        for (found, at, _), item in self.objects.items():
            if (found, at) == (kind, namespace) and labels.items() <= item["metadata"].get("labels", {}).items():
                involved = item.get("involvedObject", {}).get("name")
                if fields in ("", f"involvedObject.name={involved}"):
                    yield copy.deepcopy(item)

    def _pod_object(self, pod: Pod) -> dict[str, Any]:
        status: dict[str, Any] = {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}]}
        if not pod.scheduled:
            status = {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_ROOM}
                ],
            }
        elif pod.predictor is None:
            waiting = {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}
            ended = {"exitCode": 1, "reason": "Error"} | ({"message": self.last_words} if self.last_words else {})
            container = {
                "name": "kserve-container",
                "ready": False,
                "restartCount": 2,
                "state": {"waiting": waiting},
                "lastState": {"terminated": ended},
            }
            status["containerStatuses"] = [container]
        else:
            container = {"name": "kserve-container", "ready": self._ready(pod), "restartCount": 0, "lastState": {}}
            status["containerStatuses"] = [{**container, "state": {"running": {}}}]
        return {"metadata": {"name": pod.name}, "status": status}

    def _deployment(self, workload: Workload) -> dict[str, Any]:
        current = [pod for pod in workload.pods if pod.uri == workload.uri]
        refused = {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": f'pods "{workload.name}-1" is forbidden: exceeded quota: pods, requested: pods=1, used: '
            f"pods={self.quota}, limited: pods={self.quota}",
        }
        return {
            "metadata": {"name": workload.name, "generation": workload.generation, "labels": workload.labels},
            "spec": {"replicas": workload.replicas},
            "status": {
                "observedGeneration": workload.observed,
                "availableReplicas": sum(self._ready(pod) for pod in workload.pods),
                "updatedReplicas": len(current),
                # What a Deployment that was once available goes on to say while a newer form of it fails.
                "conditions": [
                    {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "message": ""},
                    *([refused] if workload.refused else []),
                ],
            },
        }

    # Controllers

    def tick(self) -> None:
        """One unit of time: Kubernetes looks after Deployments and pods, KServe after what changed `lag` ago."""
        self.now += 1
        for workload in self.workloads.values():
            self._roll(workload)
        for key, due in list(self._due.items()):
            if due <= self.now and key[0] == "inferenceservices":
                self._reconcile(key)

    def settle(self, ticks: int = 50) -> None:
        """Let the controllers finish."""
        for _ in range(ticks):
            self.tick()

    def _ready(self, pod: Pod) -> bool:
        return pod.scheduled and pod.predictor is not None and pod.ready_at <= self.now

    def _roll(self, workload: Workload) -> None:
        """A rolling update: old pods go once new ones are ready."""
        workload.observed = workload.generation
        current = [pod for pod in workload.pods if pod.uri == workload.uri]
        workload.refused = False
        while len(current) < workload.replicas:
            if self.quota is not None and self._count() >= self.quota:
                workload.refused = True
                break
            current.append(self._pod(workload))
            workload.pods.append(current[-1])
        if sum(self._ready(pod) for pod in current) >= workload.replicas:
            workload.pods = current[: workload.replicas]

    def _count(self) -> int:
        return sum(len(workload.pods) for workload in self.workloads.values())

    def _pod(self, workload: Workload) -> Pod:
        try:
            predictor: Predictor | None = self.load(workload.uri)
        except Exception:
            predictor = None
        room = self.room is None or self._count() < self.room
        return Pod(f"{workload.name}-{next(self._pods)}", workload.uri, self.now + self.lag, predictor, room)

    def restart_pods(self, namespace: str, workload: str) -> None:
        """What a drained node does: every pod is started again, and loads what its Deployment names."""
        self.workloads[namespace, workload].pods.clear()
        self.settle(self.lag + 2)

    def _reconcile(self, key: Key) -> None:
        _, namespace, name = key
        service = self.objects[key]
        spec, status = service["spec"], service.setdefault("status", {})
        labels = {SERVICE_LABEL: name, "component": "predictor"}
        stable, least = spec["predictor"], spec["predictor"].get("minReplicas", 1)
        self._due[key] = self.now + 1
        named = [workload_name(name, p) for p in (stable, *(entry["predictor"] for entry in spec.get("canary") or ()))]
        if self.gateway and any(len(f"{workload}-{namespace}") > LONGEST_LABEL for workload in named):
            # An error in the middle: nothing after it is done, and it is tried again for ever.
            return
        expected = {workload_name(name, stable)}
        statuses, ready_pods = [], 0
        for canary in spec.get("canary") or ():
            predictor, percent = canary["predictor"], canary["trafficPercent"]
            pods = predictor.get("minReplicas", math.ceil(least * percent / 100))
            workload = self._apply(
                namespace, workload_name(name, predictor), predictor["model"]["storageUri"], pods, labels
            )
            expected.add(workload.name)
            # As it stands now: a Deployment that was only just changed still counts as ready here.
            ready = any(self._ready(pod) for pod in workload.pods)
            ready_pods += pods if ready else 0
            statuses.append({"name": predictor["name"], "ready": ready, "trafficPercent": percent})
        status["canaryStatuses"] = statuses
        # Orphans go before the stable Deployment is made: renaming a predictor to what is no canary is an outage.
        for at, workload in list(self.workloads.items()):
            if at[0] == namespace and labels.items() <= workload.labels.items() and workload.name not in expected:
                del self.workloads[at]
        pods = max(least - ready_pods, 1) if ready_pods else least
        uri = stable.get("model", {}).get("storageUri", "")
        workload = self._apply(namespace, workload_name(name, stable), uri, pods, labels)
        # Not the InferenceService's own generation.
        status["observedGeneration"] = workload.observed
        self._route(namespace, name, workload, statuses)
        if service["metadata"].get("annotations", {}).get(SCALER_ANNOTATION) == "hpa":
            # One for each name that ever was; KServe removes none.
            scaler = {"metadata": {"name": workload.name, "labels": labels}}
            self.objects["horizontalpodautoscalers", namespace, workload.name] = scaler

    def _apply(self, namespace: str, name: str, uri: str, replicas: int, labels: dict[str, str]) -> Workload:
        workload = self.workloads.get((namespace, name))
        if workload is None:
            workload = self.workloads[namespace, name] = Workload(name, namespace, uri, replicas, labels)
        elif (workload.uri, workload.replicas) != (uri, replicas):
            workload.uri, workload.replicas = uri, replicas
            workload.generation += 1
        return workload

    def _route(self, namespace: str, name: str, stable: Workload, statuses: list[dict[str, Any]]) -> None:
        if not self.gateway or not any(self._ready(pod) for pod in stable.pods):
            return
        ready = [status for status in statuses if status["ready"]] if self.kserve >= "0.21" else []
        backends = [{"name": stable.name, "weight": 100 - sum(status["trafficPercent"] for status in ready)}]
        backends += [{"name": workload_name(name, status), "weight": status["trafficPercent"]} for status in ready]
        for route in (name, f"{name}-predictor"):
            key = ("httproutes", namespace, route)
            known = self._routes.setdefault(key, [(self.now, backends)])
            if known[-1][1] != backends:
                known.append((self.now, backends))
            self.objects[key] = {"metadata": {"name": route}, "spec": {"rules": [{"backendRefs": backends}]}}

    # Traffic

    def connect(self, host: str, port: int) -> Predictor:
        """What answers at a Service's address, as pods inside the cluster reach it."""
        name, namespace, _ = host.split(".")
        workload = self.workloads.get((namespace, name))
        for pod in workload.pods if workload else ():
            if self._ready(pod) and pod.predictor is not None:
                return pod.predictor
        raise ServerUnavailable(f"{host}:{port}: no pod is ready")

    def traffic(self, namespace: str, service: str) -> dict[str, int]:
        """storageUri -> percent of what clients send that its ready pods answer; "" for what nobody answers.

        A gateway follows a changed route `lag` later; KServe deletes a predictor with its Service at once.
        """
        known = self._routes.get(("httproutes", namespace, service))
        predictor = self.objects["inferenceservices", namespace, service]["spec"]["predictor"]
        backends: list[dict[str, Any]] = [{"name": workload_name(service, predictor), "weight": 100}]
        if known is not None:
            backends = next((b for at, b in reversed(known) if at <= self.now - self.lag), known[0][1])
        shares: dict[str, int] = {}
        for backend in backends:
            workload = self.workloads.get((namespace, backend["name"]))
            ready = [pod for pod in workload.pods if self._ready(pod)] if workload else []
            uri = ready[0].uri if ready else ""
            if backend["weight"]:
                shares[uri] = shares.get(uri, 0) + backend["weight"]
        return shares

    def inside(self, namespace: str, service: str) -> str:
        """storageUri of what answers at the Service of the InferenceService's own name; "" where nothing does."""
        found = self.objects["services", namespace, service]
        workload = self.workloads.get((namespace, found["spec"]["selector"]["app"].removeprefix("isvc.")))
        return next((pod.uri for pod in workload.pods if self._ready(pod)), "") if workload else ""


def workload_name(service: str, predictor: Mapping[str, Any]) -> str:
    """As KServe names Deployments and Services."""
    name = predictor.get("name")
    return f"{service}-{name}-predictor" if name else f"{service}-predictor"


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def refusal(new: Mapping[str, Any], old: Mapping[str, Any] | None) -> tuple[int, str] | None:
    """HTTP status and message where the schema or KServe's webhook would refuse an InferenceService."""
    spec = new["spec"]
    for index, entry in enumerate(spec.get("canary") or ()):
        model = entry.get("predictor", {}).get("model")
        if "trafficPercent" not in entry or (model is not None and not {"name", "modelFormat"} <= set(model)):
            return 422, f"spec.canary[{index}]: Required value"
    said = next(_webhook(new, spec, old), None)
    return (
        None
        if said is None
        else (403, f'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: {said}')
    )


def _webhook(new: Mapping[str, Any], spec: Mapping[str, Any], old: Mapping[str, Any] | None) -> Iterator[str]:
    stable, canaries = spec["predictor"], spec.get("canary") or ()
    model = stable.get("model") or {}
    if old is not None:
        before = old["spec"]["predictor"]
        if before.get("name", "") != stable.get("name", "") and before.get("model", {}).get("storageUri") == model.get(
            "storageUri"
        ):
            yield "predictor.name change requires a model change (e.g. storageUri)"
    if model.get("name"):
        yield "the 'name' field is not allowed in standard predictor"
    if canaries and new["metadata"].get("annotations", {}).get(MODE_ANNOTATION) != "Standard":
        yield "canary is only supported in Standard deployment mode"
    if canaries and not model:
        yield "canary requires a stable predictor with a model (multi-model serving is not supported with canary)"
    names = [entry["predictor"].get("name", "") for entry in canaries]
    for index, entry in enumerate(canaries):
        yield from _canary_rules(index, names, entry["predictor"], stable)
    if (
        not all(0 <= entry["trafficPercent"] <= 100 for entry in canaries)
        or sum(e["trafficPercent"] for e in canaries) > 100
    ):
        yield "canary trafficPercent values must be between 0 and 100 and sum to <= 100"


def _canary_rules(
    index: int, names: list[str], predictor: Mapping[str, Any], stable: Mapping[str, Any]
) -> Iterator[str]:
    name = names[index]
    if not _NAME.match(name):
        yield f"canary[{index}] predictor.name is required"
    if names.count(name) > 1:
        yield f'canary predictor.name "{name}" is duplicated'
    if name == stable.get("name"):
        yield f'canary predictor.name "{name}" conflicts with stable predictor name'
    if not (predictor.get("model") or predictor.get("containers")):
        yield f'canary "{name}" predictor: exactly one implementation is needed'
    for key in (key for key in _FIXED if predictor.get(key)):
        yield f'canary "{name}" must not set {key} (canary uses fixed replicas)'
    if predictor.get("minReplicas", 0) > stable.get("minReplicas", 1):
        yield f'canary "{name}" minReplicas ({predictor["minReplicas"]}) must not exceed stable predictor minReplicas'
