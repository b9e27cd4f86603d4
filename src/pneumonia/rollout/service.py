"""An InferenceService as releases see it, and the patches that change what it serves; no network here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pneumonia.errors import MissingPrerequisite
from pneumonia.release_manifest import release_name_of

MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
SCALER_ANNOTATION = "serving.kserve.io/autoscalerClass"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
CANARY_CONTAINER = "kserve-container"
"""What KServe's schema wants as a canary's model.name, and its webhook refuses on the stable predictor."""
SHORT_DIGITS = 12
LONGEST_LABEL = 63
"""Of a name in DNS: KServe makes `<workload>-<namespace>.<domain>` for each predictor and stops at a longer one."""


@dataclass(frozen=True)
class Variant:
    """One served release: the predictor's name ("" for the one that the chart made) and its storageUri."""

    name: str
    uri: str


@dataclass(frozen=True)
class Canary(Variant):
    """A release beside the stable one. percent: of the traffic, 0..100. replicas: pods, None where KServe chooses."""

    percent: int
    replicas: int | None


@dataclass(frozen=True)
class Service:
    """An InferenceService in the cluster. raw: the whole object, as the API gave it."""

    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.raw["metadata"]["name"])

    @property
    def version(self) -> str:
        """resourceVersion: a patch that carries it is refused where the object changed since."""
        return str(self.raw["metadata"]["resourceVersion"])

    @property
    def predictor(self) -> Mapping[str, Any]:
        """The stable predictor."""
        return dict(self.raw["spec"]["predictor"])

    @property
    def stable(self) -> Variant:
        """What the stable predictor serves."""
        return Variant(self.predictor.get("name", ""), self.predictor.get("model", {}).get("storageUri", ""))

    @property
    def replicas(self) -> int:
        """Fewest pods of the stable predictor."""
        return int(self.predictor.get("minReplicas", 1))

    @property
    def canaries(self) -> list[Canary]:
        """Every canary entry."""
        found = []
        for entry in self.raw["spec"].get("canary") or ():
            predictor = entry["predictor"]
            uri = predictor.get("model", {}).get("storageUri", "")
            found.append(Canary(predictor["name"], uri, entry["trafficPercent"], predictor.get("minReplicas")))
        return found

    def canary(self, name: str) -> Canary | None:
        """The canary of that name."""
        return next((canary for canary in self.canaries if canary.name == name), None)

    def workload(self, name: str) -> str:
        """Name of the Deployment and of the Service that KServe makes for a predictor."""
        return f"{self.name}-{name}-predictor" if name else f"{self.name}-predictor"

    def status_of(self, name: str) -> Mapping[str, Any]:
        """What status.canaryStatuses says of a canary; {} where nothing."""
        statuses = self.raw.get("status", {}).get("canaryStatuses") or ()
        return next((status for status in statuses if status["name"] == name), {})

    def require_releasable(self) -> None:
        """Raise MissingPrerequisite, naming what to change, where KServe would not take a canary here."""
        mode = self.raw["metadata"].get("annotations", {}).get(MODE_ANNOTATION)
        if mode != "Standard":
            raise MissingPrerequisite(
                f"InferenceService {self.name}: annotation {MODE_ANNOTATION} is {mode!r}, canaries need 'Standard' on "
                "the object itself; install it with the chart"
            )
        if not self.stable.uri:
            raise MissingPrerequisite(
                f"InferenceService {self.name}: its model is built into the image (no storageUri), and then there are "
                "no canaries; install the chart with model.source=s3 or pvc and model.uri=<release>"
            )
        if self.replicas < 1:
            raise MissingPrerequisite(
                f"InferenceService {self.name}: minReplicas is 0, and a canary may not have more pods than the stable "
                "predictor; set scaling.minReplicas to at least 1"
            )
        if self.raw["metadata"].get("annotations", {}).get(SCALER_ANNOTATION) == "keda":
            raise MissingPrerequisite(
                f"InferenceService {self.name}: it is scaled by KEDA, and KServe makes a ScaledObject without triggers "
                "for a canary, which KEDA refuses; set scaling.type to hpa or none while releases are rolled out"
            )

    def require_name(self, variant: Variant) -> None:
        """Raise MissingPrerequisite where the predictor's name would be too long for the host that KServe makes."""
        host = f"{self.workload(variant.name)}-{self.raw['metadata'].get('namespace', '')}"
        if len(host) > LONGEST_LABEL:
            raise MissingPrerequisite(
                f"InferenceService {self.name}: KServe would make the host {host} for this release, {len(host)} "
                f"characters, and DNS allows {LONGEST_LABEL}; install the chart with a name or a namespace that is "
                f"{len(host) - LONGEST_LABEL} shorter"
            )


def variant_of(uri: str) -> Variant:
    """The predictor's name for a release, always the same for the same release: r and 12 digits of its digest.

    Raises MissingPrerequisite for a URI that does not end in a release's digest: one that anything else could be
    written to later must never be served.
    """
    digest = release_name_of(uri)
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise MissingPrerequisite(
            f"{uri}: not a release; expected .../releases/<64 hex digits>, as `pneumoctl publish` prints it"
        )
    return Variant(f"r{digest[:SHORT_DIGITS]}", uri.rstrip("/"))


def returning(uri: str) -> Variant:
    """As `variant_of`, with a name of its own for a release that comes back: b and 12 digits."""
    variant = variant_of(uri)
    return Variant(f"b{variant.name[1:]}", variant.uri)


def canary_patch(service: Service, variant: Variant, percent: int, replicas: int) -> dict[str, Any]:
    """Exactly this one canary. It takes everything else (pod, runtime, resources) from the stable predictor."""
    model = {**service.predictor["model"], "name": CANARY_CONTAINER, "storageUri": variant.uri}
    predictor = {"name": variant.name, "minReplicas": replicas, "model": model}
    return _patch(service, {"canary": [{"trafficPercent": percent, "predictor": predictor}]})


def promotion_patch(service: Service, variant: Variant) -> dict[str, Any]:
    """The canary becomes the stable predictor: name, storageUri and the end of the canary in one step.

    model.name is removed, which KServe requires on a canary and refuses here.
    """
    predictor = {"name": variant.name or None, "model": {"name": None, "storageUri": variant.uri}}
    return _patch(service, {"predictor": predictor, "canary": None})


def removal_patch(service: Service) -> dict[str, Any]:
    """No canary; the stable predictor is left as it is."""
    return _patch(service, {"canary": None})


def _patch(service: Service, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": service.version}, "spec": dict(spec)}


def canary_values(variant: Variant, percent: int) -> dict[str, Any]:
    """The chart's values that put a release beside the stable one, for model.managedBy=values."""
    return {"model": {"canary": {"name": variant.name, "uri": variant.uri, "trafficPercent": percent}}}


def promotion_values(variant: Variant) -> dict[str, Any]:
    """The chart's values that serve a release and nothing beside it, for model.managedBy=values."""
    ended = {"name": "", "uri": "", "trafficPercent": 0}
    return {"model": {"predictorName": variant.name, "uri": variant.uri, "canary": ended}}
