"""A release reaches patients only through its checks, and no interruption ever leaves them without the old one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pneumonia.bundle import Bundle
from pneumonia.core.prediction import Prediction
from pneumonia.errors import DataError, DeployRefused, MissingPrerequisite, ServerUnavailable, UsageError
from pneumonia.inference.predictor import Predictor
from pneumonia.rollout import checks
from pneumonia.rollout.deploy import DeployResult, Plan, _backend_of, _Deployment, deploy, rollback
from pneumonia.rollout.rollout import Rollout
from pneumonia.rollout.service import Service, Variant
from tests.rollout.clusters import NAMESPACE, RULES, SERVICE, World, make_world, spec_of
from tests.rollout.fake_cluster import FakeCluster


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def roll_out(world: World, cluster: Any, which: int = 1, connect: Any = None, **changes: Any) -> DeployResult:
    """Deploy one of the two releases."""
    rules = {"cluster": cluster, "connect": connect or cluster.connect, **RULES, **changes}
    return deploy(str(world.releases[which]), world.bundles[which].path, world.images, **rules)


def served(cluster: FakeCluster) -> dict[str, int]:
    return cluster.traffic(NAMESPACE, SERVICE)


def watched(cluster: FakeCluster) -> tuple[list[dict[str, int]], list[str]]:
    """What clients meet from now on: shares through the gateway, and who answers at the service's own name."""
    shares: list[dict[str, int]] = []
    inside: list[str] = []
    tick = cluster.tick

    def watch() -> None:
        tick()
        if (share := served(cluster)) not in shares[-1:]:
            shares.append(share)
        if (one := cluster.inside(NAMESPACE, SERVICE)) not in inside[-1:]:
            inside.append(one)

    cluster.tick = watch  # type: ignore[method-assign]
    return shares, inside


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_release_is_tested_gets_its_share_and_is_promoted(world: World, replicas: int) -> None:
    old, new = map(str, world.releases)
    cluster = world.cluster(replicas=replicas)
    shares, inside = watched(cluster)
    result = roll_out(world, cluster, percent=20)
    assert result.outcome == "promoted" and result.strategy == "canary" and result.reasons == []
    rising = [{old: 67, new: 33}, {old: 34, new: 66}] if replicas == 3 else []
    assert shares == [{old: 100}, {old: 80, new: 20}, *rising, {new: 100}]
    assert inside == [old, new]
    assert result.figures["accuracy"] == 1 and result.figures["probe_max_gap"] < 1e-5
    predictor = spec_of(cluster)["predictor"]
    assert predictor["name"] == f"r{world.releases[1].name[:12]}" and predictor["model"]["storageUri"] == new
    assert "name" not in predictor["model"] and "canary" not in spec_of(cluster)
    (workload,) = cluster.workloads.values()
    assert len(workload.pods) == replicas
    # Pods of the canary went on as those of the stable predictor.
    assert workload.generation == replicas
    # What was served before is noted for a rollback, and goes with the service.
    history = cluster.objects["configmaps", NAMESPACE, f"{SERVICE}-releases"]
    assert json.loads(history["data"]["history"]) == [{"name": "", "uri": old}]
    assert history["metadata"]["ownerReferences"][0]["uid"] == f"uid-{SERVICE}"


def test_deploying_what_is_served_changes_nothing(world: World) -> None:
    cluster = world.cluster()
    roll_out(world, cluster)
    before = spec_of(cluster)
    cluster.log.clear()
    again = roll_out(world, cluster)
    assert again.outcome == "unchanged" and again.changes == []
    assert spec_of(cluster) == before and not [line for line in cluster.log if not line.startswith("GET")]


class Killed(BaseException):
    """No handler may catch it, as none catches SIGKILL."""


class DiesAfter:
    """Passes calls on and ends the run right after the last one, whose effect stays."""

    def __init__(self, cluster: FakeCluster, calls: int) -> None:
        self.cluster = cluster
        self.left = calls

    def request(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            return self.cluster.request(*arguments, **named)
        finally:
            self.left -= 1
            if self.left == 0:
                raise Killed


@pytest.mark.parametrize("options", [{}, {"gateway": False}, {"replicas": 2}], ids=["canary", "shadow", "two pods"])
def test_killed_after_any_call_the_old_model_serves_and_the_next_run_converges(
    world: World, options: dict[str, Any]
) -> None:
    old, new = map(str, world.releases)
    whole = world.cluster(**options)
    roll_out(world, whole)
    calls = len(whole.log)
    assert calls > 15
    for last in range(1, calls):
        cluster, asked = world.cluster(**options), []

        def connect(host: str, port: int, cluster: FakeCluster = cluster, asked: list[str] = asked) -> Predictor:
            asked.append(host)
            return cluster.connect(host, port)

        with pytest.raises(Killed):
            roll_out(world, DiesAfter(cluster, last), connect=connect)
        cluster.settle()
        promoted = spec_of(cluster)["predictor"]["model"]["storageUri"] == new
        # Nobody is left without an answer, and the canary has its share at most until it has passed twice.
        assert "" not in served(cluster) and cluster.inside(NAMESPACE, SERVICE), f"after call {last}"
        if not promoted:
            twice = sum("-r" in host for host in asked) == 2
            assert twice or served(cluster)[old] >= 90, f"after call {last}"
            # A drained node in that moment brings the old model back, not the new one.
            stable = "pneumonia-predictor"
            cluster.restart_pods(NAMESPACE, stable)
            assert {pod.uri for pod in cluster.workloads[NAMESPACE, stable].pods} == {old}
        shares, inside = watched(cluster)
        result = roll_out(world, cluster)
        assert result.outcome == ("unchanged" if promoted else "promoted"), f"after call {last}"
        cluster.settle()
        assert all("" not in share for share in shares) and "" not in inside, f"after call {last}"
        assert cluster.inside(NAMESPACE, SERVICE) == new
        assert served(cluster) == {new: 100} and len(cluster.workloads) == 1
        assert spec_of(cluster) == spec_of(whole)


def test_a_stable_pod_that_restarts_after_a_publication_serves_the_old_model(world: World) -> None:
    """Publishing changes no folder that a pod reads."""
    cluster = world.cluster()
    cluster.restart_pods(NAMESPACE, "pneumonia-predictor")
    (answer,) = cluster.connect("pneumonia-predictor.pneumonia.svc", 80).predict([_image(world)])
    assert answer.model_id == world.bundles[0].model_id


def _image(world: World) -> bytes:
    return next(world.images.glob("*/*.jpeg")).read_bytes()


class Changed:
    """A server whose answers are changed on the way."""

    def __init__(self, inner: Predictor, change: Any) -> None:
        self.inner, self.change = inner, change

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        return [self.change(answer) for answer in self.inner.predict(images)]


def _slow(answer: Prediction) -> Prediction:
    time.sleep(0.05)
    return answer


def _swapped(answer: Prediction) -> Prediction:
    label = "NORMAL" if answer.label == "PNEUMONIA" else "PNEUMONIA"
    return Prediction(label, answer.confidence, 1 - answer.probability, answer.threshold, False, answer.model_id)


def _stranger(answer: Prediction) -> Prediction:
    return Prediction(
        answer.label, answer.confidence, answer.probability, answer.threshold, False, "other@123456789012"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_slow, "p95 is"),
        (_swapped, "probe images get another label"),
        (_swapped, "is right about"),
        (_stranger, "it serves other@123456789012, expected tiny@"),
    ],
)
def test_a_bad_canary_is_removed_before_it_gets_traffic(world: World, change: Any, said: str) -> None:
    cluster = world.cluster()

    def connect(host: str, port: int) -> Predictor:
        inner = cluster.connect(host, port)
        return Changed(inner, change) if "-r" in host else inner

    result = roll_out(world, cluster, connect=connect, max_slowdown=1.25 if change is _slow else 1000)
    assert result.outcome == "refused" and any(said in reason for reason in result.reasons)
    cluster.settle()
    assert served(cluster) == {str(world.releases[0]): 100} and len(cluster.workloads) == 1
    with pytest.raises(DeployRefused, match=said):
        result.require()


class Broken:
    """A server that fails at every image."""

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        raise ServerUnavailable("answers 500", failed=True)


def test_a_stable_predictor_that_is_broken_does_not_keep_its_successor_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = world.cluster()

    def connect(host: str, port: int) -> Predictor:
        return cluster.connect(host, port) if "-r" in host else Broken()

    monkeypatch.setattr(checks.time, "sleep", lambda seconds: None)
    result = roll_out(world, cluster, connect=connect)
    assert result.outcome == "promoted"
    assert any("stable predictor does not answer: answers 500" in change for change in result.changes)


def test_answers_may_differ_as_far_as_the_served_form_was_shown_to(world: World) -> None:
    """INT8 and FP16 engines are not float32; what their parity allowed, the canary is allowed."""
    new = world.bundles[1]
    probe = checks.load_probe(new, world.images)
    manifest = replace(new.manifest, metrics={"parity": {"onnx": {"max_gap": 1e-6}, "int8": {"max_gap": 0.0023}}})
    quantized = replace(new, manifest=manifest)

    def reasons(bundle: Bundle, shift: float) -> list[str]:
        def moved(answer: Prediction) -> Prediction:
            away = shift if answer.probability < 0.5 else -shift
            return replace(answer, probability=answer.probability + away)

        return checks.check_answers(Changed(world.load(str(world.releases[1])), moved), probe, bundle).reasons

    assert reasons(quantized, 0.0022) == []
    assert any("from the bundle's probe" in reason for reason in reasons(quantized, 0.01))
    assert any("from the bundle's probe" in reason for reason in reasons(new, 0.0022))


def test_a_form_that_is_not_served_loosens_nothing(world: World) -> None:
    """INT8 or an engine in the bundle is no leave for a server that computes in float32."""
    parity = {"onnx": {"max_gap": 1e-6}, "int8": {"max_gap": 0.002}, "tensorrt": {"max_gap": 0.01}}
    new = world.bundles[1]
    bundle = replace(new, manifest=replace(new.manifest, metrics={"parity": parity}))
    allowed = {name: checks.allowed_gap(bundle, name) - 1e-3 for name in ("python", "onnxruntime", "tensorrt", None)}
    assert allowed == pytest.approx({"python": 0.002, "onnxruntime": 1e-6, "tensorrt": 0.01, None: 0.01})
    assert _backend_of(str(world.releases[1])) == "python"
    assert _backend_of("pvc://claim/releases/" + "0" * 64) is None


def test_a_canary_that_does_not_start_is_removed_with_its_pods_reasons(world: World) -> None:
    cluster = world.cluster()
    cluster.load = lambda uri: world.load(uri) if uri == str(world.releases[0]) else 1 / 0  # type: ignore[assignment,return-value]
    cluster.last_words = "error: model.onnx: its SHA-256 is not the one in bundle.json"
    result = roll_out(world, cluster)
    assert result.outcome == "refused"
    assert f"CrashLoopBackOff (exit code 1: {cluster.last_words})" in result.reasons[0]
    cluster.settle()
    assert served(cluster) == {str(world.releases[0]): 100}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"room": 1}, "Unschedulable (0/1 nodes are available: 1 Insufficient cpu"), ({"quota": 1}, "exceeded quota")],
)
def test_a_canary_without_a_place_is_refused_early_with_the_clusters_reason(
    world: World, options: dict[str, int], said: str
) -> None:
    cluster = world.cluster(**options)
    began = time.monotonic()
    result = roll_out(world, cluster, patience_s=0.2)
    assert 0.2 <= time.monotonic() - began < RULES["timeout_s"] / 2
    assert result.outcome == "refused" and said in result.reasons[0]
    cluster.settle()
    assert served(cluster) == {str(world.releases[0]): 100} and "canary" not in spec_of(cluster)


def test_a_node_that_an_autoscaler_adds_is_waited_for(world: World) -> None:
    cluster = world.cluster(room=1)
    request = cluster.request

    def scale(method: str, path: str, *rest: Any, **named: Any) -> dict[str, Any]:
        if path.endswith("/events"):
            pods = [pod for workload in cluster.workloads.values() for pod in workload.pods]
            waits = [pod for pod in pods if not pod.scheduled]
            if cluster.now > 100:
                for pod in waits:
                    pod.scheduled = True
            said = [{"reason": "TriggeredScaleUp", "involvedObject": {"name": pod.name}} for pod in waits]
            return {"items": said}
        return request(method, path, *rest, **named)

    cluster.request = scale  # type: ignore[method-assign]
    assert roll_out(world, cluster).outcome == "promoted" and cluster.now > 100


def test_an_upgrade_while_a_canary_has_its_share_does_not_count_as_its_end(world: World) -> None:
    """The chart changes the pods' template; Kubernetes has not looked at it yet, and then makes a new pod first."""
    cluster, seen = world.cluster(), []
    request = cluster.request

    def upgrade(method: str, path: str, *rest: Any, **named: Any) -> dict[str, Any]:
        answer = request(method, path, *rest, **named)
        spec = spec_of(cluster)
        shared = bool(spec.get("canary")) and spec["canary"][0]["trafficPercent"] == 10
        if shared and "/deployments/pneumonia-r" in path and len(seen) < 20:
            seen.append(path)
            if len(seen) > 2:
                answer["metadata"]["generation"] += 1
        return answer

    cluster.request = upgrade  # type: ignore[method-assign]
    assert roll_out(world, cluster, soak_s=0.2).outcome == "promoted" and len(seen) == 20


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_canary_that_fails_with_its_share_gives_it_back_first(world: World, replicas: int) -> None:
    old = str(world.releases[0])
    cluster = world.cluster(replicas=replicas)
    shares, inside = watched(cluster)

    def connect(host: str, port: int) -> Predictor:
        inner = cluster.connect(host, port)
        return Changed(inner, _swapped) if "-r" in host and len(shares) > 1 else inner

    assert roll_out(world, cluster, connect=connect).outcome == "refused"
    cluster.settle()
    assert all("" not in share for share in shares) and inside == [old]
    assert served(cluster) == {old: 100} and len(cluster.workloads) == 1


@pytest.mark.parametrize("options", [{"replicas": 3}, {"replicas": 3, "gateway": False}], ids=["routes", "none"])
def test_a_take_over_that_was_killed_can_be_taken_back_without_a_gap(world: World, options: dict[str, Any]) -> None:
    old = str(world.releases[0])
    whole = world.cluster(**options)
    roll_out(world, whole)
    for last in range(20, len(whole.log), 3):
        cluster = world.cluster(**options)
        with pytest.raises(Killed):
            roll_out(world, DiesAfter(cluster, last), connect=cluster.connect)
        cluster.settle()
        if "canary" not in spec_of(cluster):
            continue
        shares, inside = watched(cluster)
        rollout = Rollout(cluster, SERVICE, NAMESPACE, cluster.connect, poll_s=0.0, settle_s=0.0)
        assert rollback(rollout) == old
        cluster.settle()
        assert all("" not in share for share in shares) and "" not in inside, f"after call {last}"
        assert served(cluster) == {old: 100} and cluster.inside(NAMESPACE, SERVICE) == old
        (workload,) = cluster.workloads.values()
        assert len(workload.pods) == 3


def test_scalers_of_predictors_that_are_gone_are_removed(world: World) -> None:
    cluster = world.cluster()
    annotations = cluster.objects["inferenceservices", NAMESPACE, SERVICE]["metadata"]["annotations"]
    annotations["serving.kserve.io/autoscalerClass"] = "hpa"
    result = roll_out(world, cluster)
    name = f"{SERVICE}-r{world.releases[1].name[:12]}-predictor"
    assert [key[2] for key in cluster.objects if key[0] == "horizontalpodautoscalers"] == [name]
    assert any("HorizontalPodAutoscaler pneumonia-predictor" in change for change in result.changes)
    # No right to remove them does not undo a promotion.
    cluster = world.cluster(forbidden=frozenset({("list", "horizontalpodautoscalers")}))
    assert roll_out(world, cluster).outcome == "promoted"


def test_without_weights_on_routes_the_release_is_tested_and_replaced(world: World) -> None:
    for options in ({"gateway": False}, {"kserve": "0.20"}):
        cluster = world.cluster(**options)
        result = roll_out(world, cluster, route_timeout_s=0.3)
        assert (result.outcome, result.strategy) == ("promoted", "shadow")
        assert any("no traffic is split" in change for change in result.changes)
        cluster = world.cluster(**options)
        with pytest.raises(MissingPrerequisite, match="use strategy=shadow"):
            roll_out(world, cluster, strategy="canary", route_timeout_s=0.3)
        assert "canary" not in spec_of(cluster)


def test_what_is_missing_is_named_and_nothing_is_changed(world: World) -> None:
    def refuse(said: str, cluster: FakeCluster, **changes: Any) -> None:
        with pytest.raises(MissingPrerequisite, match=said):
            roll_out(world, cluster, **changes)
        assert not [line for line in cluster.log if not line.startswith("GET")]

    empty = FakeCluster()
    refuse("no InferenceService pneumonia in namespace pneumonia: the first model is installed by the chart", empty)
    refuse("install KServe 0.20 or newer", FakeCluster(kserve="none"))
    for kind in ("inferenceservices", "configmaps"):
        forbidden = world.cluster()
        forbidden.forbidden = frozenset({("get", kind)})
        refuse(f"get {kind} .*answers 403.*deployStep.enabled", forbidden)
    baked = world.cluster()
    del baked.objects["inferenceservices", NAMESPACE, SERVICE]["spec"]["predictor"]["model"]
    refuse("built into the image", baked)
    knative = world.cluster()
    knative.objects["inferenceservices", NAMESPACE, SERVICE]["metadata"]["annotations"] = {}
    refuse("serving.kserve.io/deploymentMode is None, canaries need 'Standard'", knative)
    keda = world.cluster()
    metadata = keda.objects["inferenceservices", NAMESPACE, SERVICE]["metadata"]
    metadata["annotations"]["serving.kserve.io/autoscalerClass"] = "keda"
    refuse("it is scaled by KEDA.*set scaling.type to hpa or none", keda)
    with pytest.raises(MissingPrerequisite, match="not a release"):
        deploy("s3://models/latest", world.bundles[1].path, world.images, cluster=world.cluster(), **RULES)


def test_a_name_that_leaves_no_room_for_a_host_is_refused_before_anything_is_changed(world: World) -> None:
    """The one that KServe stopped at on a real cluster, and the longest that works there."""
    for name, fits in (("chest-xray-pneumonia-services1", False), ("chest-xray-pneumonia-service", True)):
        service = Service({"metadata": {"name": name, "namespace": NAMESPACE}})
        variant = Variant("r926fb840e1ef", "s3://x")
        if fits:
            service.require_name(variant)
            continue
        with pytest.raises(MissingPrerequisite, match=r"services1-r926fb840e1ef-predictor-pneumonia.*64.*allows 63"):
            service.require_name(variant)


def test_a_synthetic_release_is_refused_before_a_pod_exists(world: World) -> None:
    cluster = world.cluster()
    runtime = {"spec": {"containers": [{"env": [{"name": "PNEUMONIA_ALLOW_SYNTHETIC", "value": "0"}]}]}}
    cluster.objects["servingruntimes", NAMESPACE, SERVICE] = runtime
    opened = world.bundles[1]
    synthetic = replace(opened, manifest=replace(opened.manifest, data={**opened.manifest.data, "synthetic": True}))
    assert checks.load_probe(synthetic, world.images)

    def run() -> tuple[DeployResult, list[str]]:
        rollout = Rollout(cluster, SERVICE, NAMESPACE, cluster.connect, poll_s=0.0, settle_s=0.0)
        result = DeployResult(str(world.releases[1]), synthetic.model_id)
        rules = Plan(**RULES)
        _Deployment(rollout, rules, synthetic, checks.load_probe(synthetic, world.images), result).run()
        return result, [line for line in cluster.log if not line.startswith("GET")]

    result, writes = run()
    assert result.outcome == "refused" and "trained on synthetic images" in result.reasons[0] and not writes
    runtime["spec"]["containers"][0]["env"][0]["value"] = "1"
    assert run()[0].outcome == "promoted"


def test_no_right_to_patch_and_an_older_kserve(world: World) -> None:
    cluster = world.cluster(forbidden=frozenset({("patch", "inferenceservices")}))
    with pytest.raises(MissingPrerequisite, match=r"patch inferenceservices pneumonia .*403"):
        roll_out(world, cluster)
    with pytest.raises(MissingPrerequisite, match=r"older than 0\.20"):
        roll_out(world, world.cluster(kserve="0.15"))


def test_two_writers_and_a_canary_of_another_release(world: World) -> None:
    """A conflict is read and thought over again; what another run left behind is replaced."""
    cluster = world.cluster()
    request, touched = cluster.request, []

    def meddle(method: str, path: str, *rest: Any, **named: Any) -> dict[str, Any]:
        if method == "PATCH" and not touched:
            touched.append(request("PATCH", path, {"metadata": {"labels": {"someone": "else"}}}))
        return request(method, path, *rest, **named)

    cluster.request = meddle  # type: ignore[method-assign]
    assert roll_out(world, cluster).outcome == "promoted" and touched


def test_images_that_are_not_the_probes_are_refused_before_the_cluster_is_asked(world: World, tmp_path: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.jpeg").write_bytes(label.encode())
    cluster = world.cluster()
    with pytest.raises(DataError, match="has 0 of the 10 test images"):
        deploy(str(world.releases[1]), world.bundles[1].path, tmp_path, cluster=cluster, **RULES)
    assert cluster.log == []


def test_managed_by_values_writes_files_and_asks_no_cluster(world: World, tmp_path: Path) -> None:
    import yaml

    release = str(world.releases[1])
    arguments = {"managed_by": "values", "values_dir": tmp_path, "percent": 5}
    result = deploy(release, world.bundles[1].path, world.images, **arguments)
    name = f"r{world.releases[1].name[:12]}"
    said = [yaml.safe_load(path.read_text())["model"] for path in sorted(tmp_path.iterdir())]
    assert said == [
        {"canary": {"name": name, "uri": release, "trafficPercent": 0}},
        {"canary": {"name": name, "uri": release, "trafficPercent": 5}},
        {"canary": {"name": name, "uri": release, "trafficPercent": 100}},
        {"predictorName": name, "uri": release, "canary": {"name": "", "uri": "", "trafficPercent": 0}},
    ]
    assert result.outcome == "written" and len(result.changes) == 4


@pytest.mark.parametrize("plan", [{"strategy": "bold"}, {"percent": 0}, {"managed_by": "nobody"}])
def test_settings_are_checked(world: World, plan: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        deploy(str(world.releases[1]), world.bundles[1].path, world.images, cluster=FakeCluster(), **plan)
