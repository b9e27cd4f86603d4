"""From a published release to the one that patients' images meet: canary, checks, traffic, promotion, or removal.

    from pneumonia.rollout.deploy import deploy
    result = deploy("s3://models/releases/<digest>", Path("models"), Path("xrays"), namespace="pneumonia")
    result.require()     # raises DeployRefused, exit code 5, with every reason

Any call may be the last one of a run that is killed: the stable predictor serves what it served until the one patch
that promotes, and the next run goes on from what it finds in the cluster.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.errors import DeployRefused, MissingPrerequisite, PneumoniaError, UsageError
from pneumonia.files import write_text
from pneumonia.kubernetes import Cluster, KubernetesCluster
from pneumonia.release import registry
from pneumonia.release.stores import open_store
from pneumonia.release_manifest import release_name_of
from pneumonia.rollout import checks
from pneumonia.rollout.checks import ProbeImage
from pneumonia.rollout.rollout import PATIENCE_S, SETTLE_S, Connect, Hopeless, NotReady, Rollout, connect_http, gone
from pneumonia.rollout.service import Canary, Variant, canary_values, promotion_values, returning, variant_of

STRATEGIES = ("auto", "canary", "shadow")
MANAGED_BY = ("deploy", "values")
REPLACED_S = 10.0
"""How long a canary that is tested may have no pod of its newest form, without a crash."""
NO_SPLIT = (
    "no HTTPRoute shares this service's traffic, so the canary is tested at 0 % and then replaces the stable "
    "predictor; no traffic is split"
)
_NEEDS_ROUTE = (
    "strategy=canary: no HTTPRoute shares the traffic of this service (KServe older than 0.21, enableGatewayApi off, "
    "or the service kept inside the cluster); use strategy=shadow, which tests the release at 0 % and splits no traffic"
)

_SYNTHETIC = (
    "{} was trained on synthetic images, and InferenceService {} does not serve such models; train on real X-rays, or "
    "install a test system with model.synthetic=true"
)


@dataclass(frozen=True)
class Plan:
    """How a release is rolled out.

    strategy: canary shares traffic and needs HTTPRoutes that do, shadow does not, auto takes what there is. percent:
    of the traffic for the canary, 1..99, for soak_s seconds. timeout_s: for the pods of a step to come up; patience_s:
    for a pod that does not get better by itself (no room, a quota, a crash, no image). The rest are limits of `checks`.
    tracking_uri, registered_model: MLflow's registry, whose alias `champion` follows a promotion.
    """

    strategy: str = "auto"
    percent: int = 10
    soak_s: float = 300.0
    timeout_s: float = 900.0
    route_timeout_s: float = 60.0
    patience_s: float = PATIENCE_S
    poll_s: float = 1.0
    settle_s: float = SETTLE_S
    latency_requests: int = checks.LATENCY_REQUESTS
    max_slowdown: float = checks.MAX_SLOWDOWN
    max_gap: float | None = None
    min_accuracy: float = checks.MIN_ACCURACY
    tracking_uri: str | None = None
    registered_model: str = "pneumonia"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"strategy={self.strategy}: not one of {', '.join(STRATEGIES)}")
        if not 1 <= self.percent <= 99:
            raise UsageError(f"percent={self.percent}: outside 1..99")


@dataclass
class DeployResult:
    """outcome: promoted, unchanged (it is served already), refused, or written (values for GitOps).

    strategy: canary or shadow, as it was done. changes: a sentence for each thing that was changed. reasons: why it was
    refused. figures: what the checks measured.
    """

    uri: str
    model_id: str
    outcome: str = ""
    strategy: str = ""
    changes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    def require(self) -> DeployResult:
        """Itself. Raises DeployRefused where the canary was refused."""
        if self.outcome == "refused":
            raise DeployRefused(self.reasons)
        return self


def deploy(
    release: str,
    bundle: Path,
    images: Path,
    *,
    service: str = "pneumonia",
    namespace: str = "pneumonia",
    managed_by: str = "deploy",
    values_dir: Path | None = None,
    cluster: Cluster | None = None,
    connect: Connect = connect_http,
    **plan: Any,
) -> DeployResult:
    """Roll out `release` (a URI that `publish` printed) on an InferenceService that the chart installed.

    bundle: the release's bundle, whose probe the canary has to answer. images: labelled images that hold the probe's.
    managed_by: as the chart's model.managedBy; with values, a values file for each step is written to values_dir and
    the cluster is left alone. cluster: by default the one of this pod or of $KUBECONFIG. plan: fields of `Plan`.

    A refused canary is removed and told in the result, see `DeployResult.require`. Raises MissingPrerequisite where the
    cluster, KServe, a right or the first deployment is missing; DataError and BundleError for bundle and images.
    """
    rules, opened = Plan(**plan), open_bundle(bundle)
    if managed_by not in MANAGED_BY:
        raise UsageError(f"managed_by={managed_by}: not one of {', '.join(MANAGED_BY)}")
    result = DeployResult(release, opened.model_id)
    if managed_by == "values":
        return _write_values(result, rules, values_dir)
    probe = checks.load_probe(opened, images)
    rollout = Rollout(
        cluster or KubernetesCluster(), service, namespace, connect, rules.timeout_s, rules.poll_s, rules.settle_s,
        rules.patience_s, rules.route_timeout_s,
    )  # fmt: skip
    result.changes = rollout.changes
    _Deployment(rollout, rules, opened, probe, result).run()
    return result


class _Deployment:
    """One run."""

    def __init__(
        self, rollout: Rollout, rules: Plan, bundle: Bundle, probe: list[ProbeImage], result: DeployResult
    ) -> None:
        self.rollout = rollout
        self.rules = rules
        self.bundle = bundle
        self.probe = probe
        self.result = result

    def run(self) -> None:
        """Promoted, unchanged or refused."""
        service = self.rollout.read()
        service.require_releasable()
        if service.stable.uri == variant_of(self.result.uri).uri:
            # A run that was killed right after its promotion comes back here.
            self.rollout.remove()
            self.rollout.clear_scalers()
            self._served("unchanged")
            return
        if self.rules.strategy == "canary" and not self.rollout.has_route():
            raise MissingPrerequisite(_NEEDS_ROUTE)
        variant = self.rollout.place(service, self.result.uri)
        service.require_name(variant)
        # Read now, so that a missing right is told before anything is changed.
        self.rollout.history()
        if self.bundle.manifest.synthetic and not self.rollout.serves_synthetic():
            # Its server would refuse it at its start, a minute later and with one request less for the old one.
            self._refused([_SYNTHETIC.format(self.bundle.model_id, self.rollout.name)])
            return
        try:
            self.rollout.start(variant)
            reasons = self._test(variant)
            if not reasons:
                promote(self.rollout, variant)
        except NotReady as error:
            reasons = [str(error)]
        if reasons:
            self._refused(reasons)
            self.rollout.remove()
        else:
            self._served("promoted")

    def _test(self, variant: Variant) -> list[str]:
        """Why the canary may not be promoted; empty where it may."""
        canary = self.rollout.read().canary(variant.name)
        # One that a killed run left behind may have its share of the traffic already.
        self.rollout.wait_ready(variant, canary.percent if canary else 0, 1)
        if canary is not None and _taking_over(canary):
            # It has passed; to give it its first share again would leave too few pods for the rest.
            self.result.strategy = "canary"
            return self._check(variant)
        return self._check(variant) or self._share(variant)

    def _check(self, variant: Variant) -> list[str]:
        """Past every route, against the canary's own Service."""
        self.rollout.say(f"asking canary {variant.name} about {len(self.probe)} labelled images")
        rules, stable = self.rules, self.rollout.read().stable
        canary = self.rollout.predictor(variant.name)
        backend = _backend_of(self.result.uri)
        answers = checks.check_answers(canary, self.probe, self.bundle, rules.max_gap, rules.min_accuracy, backend)
        self.result.figures.update(answers.figures)
        if answers.reasons:
            return answers.reasons
        latency = checks.check_latency(
            self.rollout.predictor(stable.name), canary, self.probe, rules.latency_requests, rules.max_slowdown
        )
        self.result.figures.update(latency.figures)
        for note in latency.notes:
            self.rollout.say(note)
            self.result.changes.append(note)
        return latency.reasons

    def _share(self, variant: Variant) -> list[str]:
        """The canary's share of the traffic for a while, then the same questions again."""
        splits = self.rules.strategy != "shadow" and self._split_at(variant, percent=None)
        self.result.strategy = "canary" if splits else "shadow"
        if not splits:
            if self.rules.strategy == "canary":
                self.rollout.remove()
                raise MissingPrerequisite(_NEEDS_ROUTE)
            self.rollout.say(NO_SPLIT)
            self.result.changes.append(NO_SPLIT)
            return []
        percent, service = self.rules.percent, self.rollout.read()
        canary = service.canary(variant.name)
        self.rollout.resize(variant, percent, (canary.replicas if canary else None) or 1)
        if not self._split_at(variant, percent):
            return [f"its share of the traffic did not become {percent} % on the HTTPRoutes"]
        self._soak(variant, percent)
        return self._check(variant)

    def _split_at(self, variant: Variant, percent: int | None) -> bool:
        """Whether the routes come to name the canary, with that weight where one is given."""

        def missing() -> str | None:
            found = self.rollout.route_percent(variant)
            return None if found is not None and percent in (None, found) else f"its weight on the routes is {found}"

        return self.rollout.has_route() and self.rollout.routes_say(missing)

    def _soak(self, variant: Variant, percent: int) -> None:
        """Raises NotReady where a pod of the canary goes down meanwhile."""
        ends = time.monotonic() + self.rules.soak_s
        self.rollout.say(f"canary {variant.name} answers {percent} % for {self.rules.soak_s:g} s")
        while time.monotonic() < ends:
            if missing := self._down(variant):
                try:
                    # An upgrade of the chart replaces its pod, the new one first; for a moment none counts as updated.
                    if not isinstance(missing, Hopeless):
                        self.rollout.until(partial(self._down, variant), f"canary {variant.name}", REPLACED_S)
                        continue
                except NotReady as error:
                    missing = str(error)
                raise NotReady(f"canary {variant.name} went down at {percent} %: {missing}")
            time.sleep(min(self.rules.poll_s, max(0.0, ends - time.monotonic())))

    def _down(self, variant: Variant) -> str | None:
        return self.rollout.workload_ready(self.rollout.read(), variant.name, 1)

    def _refused(self, reasons: list[str]) -> None:
        self.result.outcome, self.result.reasons = "refused", reasons
        for reason in reasons:
            self.rollout.say(f"refused: {reason}")

    def _served(self, outcome: str) -> None:
        rules = self.rules
        self.result.outcome = outcome
        version = registry.set_alias(
            rules.tracking_uri, rules.registered_model, self.result.uri, registry.CHAMPION, self.bundle.digest
        )
        if version is not None:
            self.result.changes.append(f"{registry.CHAMPION} is version {version} of {rules.registered_model}")


def promote(rollout: Rollout, variant: Variant) -> None:
    """Move pods and traffic to the canary step by step, then make it the stable predictor in one patch.

    KServe takes a pod from the stable predictor for each that the canary gets, and at the patch it deletes the old
    predictor with its Service at once. So nothing may lead there any more: the canary gets its pods one at a time, a
    share that follows them, and all of both before the patch. Where no route shares traffic, the Service of the
    InferenceService's name moves at half of the pods, so that there are never fewer than half for all of the traffic.
    """
    service = rollout.read()
    canary, pods = service.canary(variant.name), service.replicas
    if canary is None:
        if service.stable != variant:
            raise gone(rollout.name, variant)
    else:
        shares = rollout.route_percent(variant) is not None
        half, done, percent = (pods + 1) // 2, canary.replicas or 1, canary.percent
        # Routes that share nothing lead to the stable predictor until the patch, which needs its pods until then.
        for replicas in range(done, (half if rollout.has_route() and not shares else pods) + 1):
            rollout.resize(variant, percent, replicas)
            rollout.wait_ready(variant, percent, replicas)
            if shares:
                percent = max(percent, 100 * replicas // pods)
                rollout.resize(variant, percent, replicas)
                rollout.wait_ready(variant, percent, replicas)
            if replicas >= half:
                rollout.lead_to(variant.name)
        if shares:
            rollout.wait_routed(variant, 100)
    before = rollout.read().stable
    rollout.lead_to(variant.name)
    rollout.promote(variant)
    try:
        rollout.wait_promoted(variant, before)
        rollout.clear_scalers()
    except NotReady as error:
        # The patch is done and right; what follows is KServe's work.
        rollout.changes.append(f"KServe has not finished: {error}")
        rollout.say(rollout.changes[-1])


def _backend_of(uri: str) -> str | None:
    """The backend that a release was published for; None where it cannot be read from here, as on a volume."""
    root = uri.rpartition(f"/{contract.RELEASES_DIR}/")[0]
    try:
        manifest = open_store(root).manifest(release_name_of(uri))
    except PneumoniaError:
        return None
    return str(manifest["backend"]) if manifest and "backend" in manifest else None


def _taking_over(canary: Canary) -> bool:
    """Whether `promote` had begun: while it is tested, a canary has one pod and less than all of the traffic."""
    return (canary.replicas or 1) > 1 or canary.percent == 100


def rollback(rollout: Rollout, to: str | None = None) -> str:
    """End the canary where there is one, else serve again what was served before (or `to`); what is served then.

    A release that comes back starts as a canary at 0 % and replaces the stable predictor once its pods are up, because
    KServe stops the old pods at once when the predictor's name changes. Raises MissingPrerequisite where nothing was
    served before.
    """
    service = rollout.read()
    service.require_releasable()
    target = to
    if target is None:
        before = rollout.history()
        # One named by `returning` belongs to a rollback that was killed, which goes on; any other is what has to end.
        going = bool(before) and service.canary(returning(before[-1].uri).name) is not None
        if service.canaries and not going:
            return rollout.remove().stable.uri
        if not before:
            raise MissingPrerequisite(
                f"InferenceService {rollout.name}: nothing is known to have been served before {service.stable.uri}; "
                "name a release with --to"
            )
        target = before[-1].uri
    if service.stable.uri == variant_of(target).uri:
        return rollout.remove().stable.uri
    variant = returning(target)
    service.require_name(variant)
    started = rollout.start(variant).canary(variant.name)
    rollout.wait_ready(variant, started.percent if started else 0, 1)
    promote(rollout, variant)
    return variant.uri


def _write_values(result: DeployResult, rules: Plan, folder: Path | None) -> DeployResult:
    """A file a step for helm's -f or a GitOps repository, to be used one after the other."""
    import yaml

    if folder is None:
        raise UsageError("managed_by=values: name the folder for the values files with values_dir")
    variant = variant_of(result.uri)
    files = {
        "1-canary.yaml": canary_values(variant, 0),
        "2-share.yaml": canary_values(variant, rules.percent),
        "3-full.yaml": canary_values(variant, 100),
        "4-promote.yaml": promotion_values(variant),
    }
    for name, values in files.items():
        write_text(folder / name, yaml.safe_dump(values, sort_keys=False))
        result.changes.append(f"{folder / name} was written; nothing in a cluster was changed")
    result.outcome = "written"
    return result
