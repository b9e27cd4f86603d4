"""The steps of a rollout, each safe to repeat: all state lies in the cluster, so whoever is killed is continued."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from pneumonia.errors import MissingPrerequisite, PneumoniaError
from pneumonia.inference.predictor import Predictor
from pneumonia.kubernetes import KSERVE_SINCE, ApiError, Cluster, Namespace
from pneumonia.rollout.service import (
    SERVICE_LABEL,
    Canary,
    Service,
    Variant,
    canary_patch,
    promotion_patch,
    removal_patch,
    variant_of,
)

Connect = Callable[[str, int], Predictor]
"""Host and port of a Kubernetes Service -> what answers there."""
HISTORY_KEY = "history"
_HISTORY_LENGTH = 20
_CONFLICTS = 5
REQUEST_TIMEOUT_S = 30.0
SETTLE_S = 5.0
"""Until every node and the gateway use a changed route or selector; Traefik reads routes every 2 s at most."""


class NotReady(PneumoniaError):
    """What was waited for did not come in time."""


def connect_http(host: str, port: int) -> Predictor:
    """KServe v2 over HTTP."""
    from pneumonia.inference.triton_client import TritonPredictor

    return TritonPredictor(f"{host}:{port}", "http", REQUEST_TIMEOUT_S)


class Rollout:
    """One InferenceService and what can be done to it. changes: a sentence for each thing that was changed."""

    def __init__(
        self,
        cluster: Cluster,
        service: str,
        namespace: str,
        connect: Connect = connect_http,
        timeout_s: float = 900.0,
        poll_s: float = 1.0,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.namespace = Namespace(cluster, namespace)
        self.name = service
        self.connect = connect
        self.timeout_s = timeout_s
        self.poll_s = poll_s
        self.settle_s = settle_s
        self.changes: list[str] = []

    def read(self) -> Service:
        """The InferenceService. Raises MissingPrerequisite where there is none, or no KServe."""
        found = self.namespace.get("inferenceservices", self.name)
        if found is None:
            raise MissingPrerequisite(
                f"no InferenceService {self.name} in namespace {self.namespace.name}: the first model is installed by "
                f"the chart, `helm install {self.name} <chart> -n {self.namespace.name} --set image.repository=<image> "
                "--set model.source=s3 --set model.uri=<release> ...`; those after it are deployed"
            )
        return Service(found)

    def place(self, service: Service, uri: str) -> Variant:
        """The release with a predictor's name that differs from the stable one's, as KServe wants it."""
        variant = variant_of(uri)
        taken = variant.name == service.stable.name
        return Variant(f"{variant.name}b", variant.uri) if taken else variant

    def start(self, variant: Variant) -> Service:
        """Make `variant` the one canary, at 0 % with one pod; one that is up already stays as it is."""

        def make(service: Service) -> dict[str, Any] | None:
            service.require_releasable()
            (canary, *others) = service.canaries or (None,)
            if canary and not others and (canary.name, canary.uri) == (variant.name, variant.uri) and canary.replicas:
                return None
            return canary_patch(service, variant, percent=0, replicas=1)

        changed = self._change(make, f"canary {variant.name} started at 0 % with one pod: {variant.uri}")
        if changed.canary(variant.name) is None:
            raise MissingPrerequisite(
                f"InferenceService {self.name}: the cluster dropped spec.canary, so its KServe is older than "
                f"{KSERVE_SINCE}; upgrade KServe, nothing was changed"
            )
        return changed

    def resize(self, variant: Variant, percent: int, replicas: int) -> Service:
        """Give the canary its share of the traffic and its pods. Raises PneumoniaError where it is no longer there."""

        def make(service: Service) -> dict[str, Any] | None:
            canary = self._ours(service, variant)
            same = (canary.percent, canary.replicas) == (percent, replicas)
            return None if same else canary_patch(service, variant, percent, replicas)

        return self._change(make, f"canary {variant.name} at {percent} % with {replicas} pods")

    def promote(self, variant: Variant) -> Service:
        """The canary becomes the stable predictor, in one patch; what was served is noted for `rollback` first."""
        self._remember(self.read().stable, variant)

        def make(service: Service) -> dict[str, Any] | None:
            if service.stable == variant:
                return None
            self._ours(service, variant)
            return promotion_patch(service, variant)

        return self._change(make, f"{variant.uri} is served now, by predictor {variant.name}")

    def lead_to(self, name: str) -> None:
        """Let the Service of the InferenceService's name, which the chart owns, lead to a predictor's pods.

        KServe deletes its own Services with the predictor they are named after; this one is the address that stays.
        """
        service = self.namespace.get("services", self.name)
        if service is None:
            self.say(f"no Service {self.name}: clients inside the cluster have to follow the predictor's name")
            return
        app = f"isvc.{self.read().workload(name)}"
        if service["spec"].get("selector") != {"app": app}:
            # A merge patch: keys of an older selector would keep every pod out.
            old = dict.fromkeys(service["spec"].get("selector") or {})
            self.namespace.patch("services", self.name, {"spec": {"selector": {**old, "app": app}}})
            self.changes.append(f"Service {self.name} leads to {app}")
            self.say(self.changes[-1])
            # Nodes hear of it within a second or two; until then both predictors answer.
            time.sleep(self.settle_s)

    def remove(self) -> Service:
        """End every canary; the stable predictor is left as it is."""
        service = self.read()
        if service.canaries:
            self.lead_to(service.stable.name)
        return self._change(
            lambda service: removal_patch(service) if service.canaries else None, "the canary was removed"
        )

    def _change(self, make: Callable[[Service], dict[str, Any] | None], done: str) -> Service:
        """Patch what was just read; where someone was faster, read again and think again."""
        for _ in range(_CONFLICTS):
            service = self.read()
            body = make(service)
            if body is None:
                return service
            try:
                changed = Service(self.namespace.patch("inferenceservices", self.name, body))
            except ApiError:
                continue
            self.changes.append(done)
            self.say(done)
            return changed
        raise PneumoniaError(
            f"InferenceService {self.name} kept changing while it was patched ({_CONFLICTS} attempts); see who else "
            "writes to it and try again"
        )

    def _ours(self, service: Service, variant: Variant) -> Canary:
        canary = service.canary(variant.name)
        if canary is None or canary.uri != variant.uri:
            raise PneumoniaError(
                f"canary {variant.name} of {self.name} was removed or replaced by someone else meanwhile; deploy again"
            )
        return canary

    def workload_ready(self, service: Service, name: str, replicas: int) -> str | None:
        """None where the predictor's Deployment runs what its spec says; else what is still missing."""
        workload = service.workload(name)
        deployment = self.namespace.get("deployments", workload)
        if deployment is None:
            return f"Deployment {workload} does not exist yet"
        status, metadata = deployment.get("status", {}), deployment["metadata"]
        # An answer about an older form of the Deployment says nothing about this one.
        if status.get("observedGeneration", 0) < metadata.get("generation", 1):
            return f"Deployment {workload} has not been looked at by Kubernetes yet"
        ready = min(status.get("availableReplicas", 0), status.get("updatedReplicas", 0))
        return None if ready >= replicas else f"{ready} of {replicas} pods are ready{self._pods(workload)}"

    def wait_ready(self, variant: Variant, percent: int, replicas: int) -> None:
        """Return once Kubernetes and KServe call the canary's pods up. Raises NotReady with the pods' reasons."""

        def missing() -> str | None:
            service = self.read()
            self._ours(service, variant)
            if said := self.workload_ready(service, variant.name, replicas):
                return said
            # KServe writes it after each look; the share tells a look at this form from one at an older form.
            status = service.status_of(variant.name)
            current = status.get("ready") and status.get("trafficPercent") == percent
            return None if current else "KServe does not call it ready yet"

        self.until(missing, f"canary {variant.name}")

    def wait_promoted(self, variant: Variant, before: Variant) -> None:
        """Return once the promoted release has all its pods and the old one is gone."""

        def missing() -> str | None:
            service = self.read()
            if said := self.workload_ready(service, variant.name, service.replicas):
                return said
            old = service.workload(before.name)
            return f"{old} still runs" if self.namespace.get("deployments", old) is not None else None

        self.until(missing, f"predictor {variant.name}")

    def until(self, missing: Callable[[], str | None], what: str, timeout_s: float | None = None) -> None:
        """Ask until nothing is missing. Raises NotReady, saying what still is, when the time is up."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        started, said = time.monotonic(), ""
        while (reason := missing()) is not None:
            if time.monotonic() - started >= limit:
                raise NotReady(f"{what} is not ready after {limit:g} s: {reason}")
            if reason != said:
                self.say(f"waiting for {what}: {reason}")
                said = reason
            time.sleep(self.poll_s)

    def route_percent(self, variant: Variant) -> int | None:
        """The canary's weight on the HTTPRoutes of the service; None where no route shares traffic with it."""
        service, weights = self.read(), list[int | None]()
        stable, beside = service.workload(service.stable.name), service.workload(variant.name)
        for name in (self.name, f"{self.name}-predictor"):
            route = self.namespace.get("httproutes", name)
            for rule in (route or {}).get("spec", {}).get("rules", ()):
                backends = {backend["name"]: backend.get("weight", 1) for backend in rule.get("backendRefs", ())}
                if stable in backends:
                    weights.append(backends.get(beside))
        known = [weight for weight in weights if weight is not None]
        return min(known) if known and len(known) == len(weights) else None

    def has_route(self) -> bool:
        """Whether KServe made an HTTPRoute for the service at all."""
        return any(self.namespace.get("httproutes", name) for name in (self.name, f"{self.name}-predictor"))

    def predictor(self, name: str) -> Predictor:
        """What answers at a predictor's own Service, past every route."""
        workload = self.read().workload(name)
        service = self.namespace.get("services", workload)
        if service is None:
            raise NotReady(f"Service {workload} does not exist in namespace {self.namespace.name}")
        port = service["spec"]["ports"][0]
        # A headless Service has no port of its own: names lead straight to the pods.
        number = port.get("targetPort", port["port"]) if service["spec"].get("clusterIP") == "None" else port["port"]
        return self.connect(f"{workload}.{self.namespace.name}.svc", int(number))

    def history(self) -> list[Variant]:
        """What was served before what is served now, oldest first."""
        found = self.namespace.get("configmaps", self._history_name)
        entries = json.loads((found or {}).get("data", {}).get(HISTORY_KEY, "[]"))
        variants = [Variant(entry["name"], entry["uri"]) for entry in entries]
        stable = self.read().stable
        while variants and variants[-1].uri == stable.uri:
            variants.pop()
        return variants

    @property
    def _history_name(self) -> str:
        return f"{self.name}-releases"

    def _remember(self, outgoing: Variant, incoming: Variant) -> None:
        """Note what is about to be replaced; going back to the newest note takes it off instead."""
        before = self.history()
        back = bool(before) and before[-1].uri == incoming.uri
        kept = before if back else [*before, outgoing][-_HISTORY_LENGTH:]
        data = {HISTORY_KEY: json.dumps([{"name": entry.name, "uri": entry.uri} for entry in kept])}
        # Not an annotation of the InferenceService: KServe copies those to its pods, which would all restart.
        if self.namespace.get("configmaps", self._history_name) is None:
            metadata = {"name": self._history_name, "labels": {SERVICE_LABEL: self.name}}
            self.namespace.create(
                "configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            )
        else:
            self.namespace.patch("configmaps", self._history_name, {"data": data})

    def _pods(self, workload: str) -> str:
        """Why pods of a workload wait, in their own words."""
        reasons = []
        for pod in self.namespace.list("pods", {SERVICE_LABEL: self.name}):
            if not pod["metadata"]["name"].startswith(f"{workload}-"):
                continue
            status: Mapping[str, Any] = pod.get("status", {})
            for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
                state = container.get("state", {})
                stopped = state.get("waiting") or state.get("terminated") or {}
                if stopped.get("reason") not in (None, "PodInitializing", "ContainerCreating", "Completed"):
                    told = f" ({stopped['message']})" if stopped.get("message") else ""
                    reasons.append(f"{pod['metadata']['name']} {container['name']}: {stopped['reason']}{told}")
        return f"; {'; '.join(reasons)}" if reasons else ""

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"deploy: {text}", file=sys.stderr, flush=True)
