"""The steps of a rollout, each safe to repeat: all state lies in the cluster, so whoever is killed is continued."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pneumonia import contract
from pneumonia.errors import MissingPrerequisite, PneumoniaError
from pneumonia.inference.predictor import Predictor
from pneumonia.kubernetes import KSERVE_SINCE, ApiError, Cluster, Namespace
from pneumonia.rollout import history
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
_CONFLICTS = 5
REQUEST_TIMEOUT_S = 30.0
SETTLE_S = 5.0
"""Until every node and the gateway use a changed route or selector; Traefik reads routes every 2 s at most."""
PATIENCE_S = 30.0
"""For what does not get better by itself: a crash at the start shows itself twice in it, and an autoscaler that adds a
node says so at once."""
ROUTE_TIMEOUT_S = 60.0
_HOPELESS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CrashLoopBackOff")
_PASSING = (None, "PodInitializing", "ContainerCreating", "Completed")
_LONGEST_MESSAGE = 600


class NotReady(PneumoniaError):
    """What was waited for did not come in time."""


class Hopeless(str):
    """What is missing and will not come by itself: the wait for it ends early."""


def gone(service: str, variant: Variant) -> PneumoniaError:
    """The error for a canary that somebody else took away."""
    return PneumoniaError(
        f"canary {variant.name} of {service} was removed or replaced by someone else meanwhile; deploy again"
    )


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
        patience_s: float = PATIENCE_S,
        route_timeout_s: float = ROUTE_TIMEOUT_S,
    ) -> None:
        self.namespace = Namespace(cluster, namespace)
        self.name = service
        self.connect = connect
        self.timeout_s = timeout_s
        self.poll_s = poll_s
        self.settle_s = settle_s
        self.patience_s = patience_s
        self.route_timeout_s = route_timeout_s
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
        if any((canary.name, canary.uri) != (variant.name, variant.uri) for canary in self.read().canaries):
            # What another run left behind may have traffic, and goes the way that costs no request.
            self.remove()

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
        history.remember(self.namespace, self.read(), variant)

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
        """End every canary; the stable predictor is left as it is.

        What a canary answers goes back first, in steps that give the stable predictor its pods again: KServe deletes a
        canary with its Service at once, and what still leads there would fail.
        """
        service = self.read()
        for canary in service.canaries:
            if service.status_of(canary.name).get("ready"):
                self._drain(Variant(canary.name, canary.uri), canary.percent, canary.replicas or 1, service)
        self.lead_to(service.stable.name)
        return self._change(
            lambda service: removal_patch(service) if service.canaries else None, "the canary was removed"
        )

    def _drain(self, variant: Variant, percent: int, pods: int, service: Service) -> None:
        """Share and pods of a canary down to none and one, never both at once."""
        shared = self.route_percent(variant) or 0
        for left in range(pods - 1, -1, -1):
            percent = min(percent, 100 * left // service.replicas)
            self.resize(variant, percent, left + 1)
            self.routes_say(partial(self._above, variant, percent))
            if left:
                self.resize(variant, percent, left)
                back = partial(self._back, service.stable.name, service.replicas - left)
                try:
                    self.until(back, "the stable predictor", self.route_timeout_s)
                except NotReady as error:
                    self.say(str(error))
        if shared:
            time.sleep(self.settle_s)

    def _back(self, name: str, pods: int) -> str | None:
        return self.workload_ready(self.read(), name, pods)

    def _above(self, variant: Variant, percent: int) -> str | None:
        found = self.route_percent(variant)
        return None if found is None or found <= percent else f"the canary's weight on the routes is {found}"

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
            raise gone(self.name, variant)
        return canary

    def workload_ready(self, service: Service, name: str, replicas: int) -> str | None:
        """None where the predictor's Deployment runs what its spec says; else what is still missing."""
        workload = service.workload(name)
        deployment = self.namespace.get("deployments", workload)
        if deployment is None:
            return f"Deployment {workload} does not exist yet{self._kserve_says()}"
        status, metadata = deployment.get("status", {}), deployment["metadata"]
        # An answer about an older form of the Deployment says nothing about this one.
        if status.get("observedGeneration", 0) < metadata.get("generation", 1):
            return f"Deployment {workload} has not been looked at by Kubernetes yet"
        ready = min(status.get("availableReplicas", 0), status.get("updatedReplicas", 0))
        if ready >= replicas:
            return None
        for condition in status.get("conditions", ()):
            # A quota, or a policy: no pod was made, so none can say it.
            if (condition["type"], condition["status"]) == ("ReplicaFailure", "True"):
                return Hopeless(f"{condition.get('reason')}: {condition.get('message')}")
        reasons = self._pods(workload)
        told = f"{ready} of {replicas} pods are ready{''.join(f'; {reason}' for reason in reasons)}"
        return Hopeless(told) if any(isinstance(reason, Hopeless) for reason in reasons) else told

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
        hopeless_since: float | None = None
        while (reason := missing()) is not None:
            now = time.monotonic()
            hopeless_since = (hopeless_since or now) if isinstance(reason, Hopeless) else None
            if now - started >= limit:
                raise NotReady(f"{what} is not ready after {limit:g} s: {reason}")
            if hopeless_since is not None and now - hopeless_since >= self.patience_s:
                raise NotReady(f"{what} does not get ready: {reason}")
            if reason != said:
                self.say(f"waiting for {what}: {reason}")
                said = reason
            time.sleep(self.poll_s)

    def routes_say(self, missing: Callable[[], str | None]) -> bool:
        """Whether the HTTPRoutes come to say what is waited for, in the time that a route is given."""
        try:
            self.until(missing, "the HTTPRoute", self.route_timeout_s)
        except NotReady:
            return False
        return True

    def wait_routed(self, variant: Variant, percent: int) -> None:
        """Return once every route gives the canary that weight and the gateway has had time to follow.

        Raises NotReady where the routes do not come to say so."""

        def missing() -> str | None:
            found = self.route_percent(variant)
            return None if found == percent else f"the canary's weight on the routes is {found}, {percent} was asked"

        self.until(missing, "the HTTPRoute", self.route_timeout_s)
        time.sleep(self.settle_s)

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
        return history.read(self.namespace, self.read())

    def _pods(self, workload: str) -> list[str]:
        """Why pods of a workload wait, in their own words; what does not get better by itself is `Hopeless`."""
        reasons: list[str] = []
        for pod in self.namespace.list("pods", {SERVICE_LABEL: self.name}):
            if not pod["metadata"]["name"].startswith(f"{workload}-") or "deletionTimestamp" in pod["metadata"]:
                continue
            name, status = pod["metadata"]["name"], pod.get("status", {})
            for condition in status.get("conditions", ()):
                if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
                    told = f"{name}: {condition.get('reason')} ({condition.get('message')})"
                    reasons.append(told if self._node_comes(name) else Hopeless(told))
            for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
                if told := _stopped(container):
                    reasons.append(type(told)(f"{name} {container['name']}: {told}"))
        return reasons

    def _kserve_says(self) -> str:
        """KServe's newest complaint about the service; empty where there is none, or no right to read events."""
        try:
            events = self.namespace.list("events", fields={"involvedObject.name": self.name})
        except MissingPrerequisite:
            return ""
        said = [
            (str(event.get("lastTimestamp") or event.get("eventTime") or ""), str(event.get("message", "")))
            for event in events
            # Not two that wrote at once, which KServe tries again by itself, nor that a service is not ready.
            if event.get("type") == "Warning"
            and event.get("reason") != "InferenceServiceNotReady"
            and "has been modified" not in str(event.get("message", ""))
        ]
        return f" ({max(said)[1][:_LONGEST_MESSAGE]})" if said else ""

    def _node_comes(self, pod: str) -> bool:
        """Whether an autoscaler has said that it adds a node for a pod."""
        try:
            events = self.namespace.list("events", fields={"involvedObject.name": pod})
        except MissingPrerequisite:
            # Without the right to read events: wait as long as for anything else.
            return True
        return any(event.get("reason") == "TriggeredScaleUp" for event in events)

    def clear_scalers(self) -> None:
        """Delete what scales predictors that are gone: KServe leaves their HorizontalPodAutoscalers behind."""
        service = self.read()
        kept = {service.workload(predictor.name) for predictor in (service.stable, *service.canaries)}
        try:
            for scaler in self.namespace.list("horizontalpodautoscalers", {SERVICE_LABEL: self.name}):
                name = scaler["metadata"]["name"]
                if name not in kept:
                    self.namespace.delete("horizontalpodautoscalers", name)
                    self.changes.append(f"HorizontalPodAutoscaler {name}, whose predictor is gone, was removed")
                    self.say(self.changes[-1])
        except MissingPrerequisite as error:
            self.say(f"scalers of predictors that are gone may be left: {error}")

    def serves_synthetic(self) -> bool:
        """Whether the servers of this service take a release that was trained on synthetic images."""
        model = self.read().predictor.get("model", {})
        try:
            runtime = self.namespace.get("servingruntimes", str(model.get("runtime", "")))
        except MissingPrerequisite:
            # Without the right to look: the server decides at its start.
            return True
        containers = [*(runtime or {}).get("spec", {}).get("containers", ()), model]
        values = [
            entry.get("value")
            for container in containers
            for entry in container.get("env") or ()
            if entry["name"] == contract.ALLOW_SYNTHETIC_ENV
        ]
        return runtime is None or "1" in values

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"deploy: {text}", file=sys.stderr, flush=True)


def _stopped(container: Mapping[str, Any]) -> str:
    """Why a container does not run, with what it said last; empty where it runs or is about to."""
    state = container.get("state", {})
    last = (container.get("lastState") or {}).get("terminated") or {}
    now = state.get("waiting") or state.get("terminated") or {}
    stopped_before = bool(last) and not container.get("ready") and int(container.get("restartCount", 0)) > 0
    if now.get("reason") in _PASSING and not stopped_before:
        return ""
    # The server's own sentence, which terminationMessagePolicy put there, tells more than the back-off does.
    ended = last or (now if "exitCode" in now else {})
    said = str(ended.get("message") or "").strip()[-_LONGEST_MESSAGE:]
    waits = now.get("reason") or "restarted"
    told = [f"exit code {ended['exitCode']}"] if ended.get("exitCode") else []
    told += [said] if said else [now["message"]] if now.get("message") else []
    text = f"{waits} ({': '.join(told)})" if told else str(waits)
    return Hopeless(text) if stopped_before or now.get("reason") in _HOPELESS else text
