"""A cluster in memory that serves one published release, and a second release to deploy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.core.prediction import Prediction
from pneumonia.core.preprocess import preprocess
from pneumonia.inference.onnx_runtime import OnnxPredictor, open_session
from pneumonia.inference.predictor import Predictor
from pneumonia.release.publish import publish
from pneumonia.release_manifest import verify_release
from tests.bundles import tiny_bundle, xray
from tests.rollout.fake_cluster import FakeCluster

SERVICE = NAMESPACE = "pneumonia"
RULES: dict[str, Any] = {
    "poll_s": 0.0,
    "settle_s": 0.0,
    "patience_s": 0.0,
    "soak_s": 0.0,
    "timeout_s": 60.0,
    "route_timeout_s": 60.0,
    "latency_requests": 2,
    # What the machine does meanwhile must not decide a test that is about something else.
    "max_slowdown": 1000.0,
}


@dataclass(frozen=True)
class World:
    """Two bundles with their releases, and the labelled images of their probes."""

    images: Path
    bundles: tuple[Bundle, Bundle]
    releases: tuple[Path, Path]
    loaded: dict[str, Predictor] = field(default_factory=dict)

    def load(self, uri: str) -> Predictor:
        """What a pod does: take the release that it is given, whole, and answer with it."""
        if uri not in self.loaded:
            verify_release(Path(uri))
            bundle = next(b for b, release in zip(self.bundles, self.releases, strict=True) if str(release) == uri)
            self.loaded[uri] = Remembering(OnnxPredictor(bundle.path, "cpu"))
        return self.loaded[uri]

    def cluster(self, **options: Any) -> FakeCluster:
        """The first release is served by what a chart would install."""
        replicas = options.pop("replicas", 1)
        cluster = FakeCluster(self.load, **options)
        install(cluster, str(self.releases[0]), replicas)
        return cluster


class Remembering:
    """Asks about an image once: hundreds of rollouts ask the same."""

    def __init__(self, inner: Predictor) -> None:
        self.inner = inner
        self.answers: dict[bytes, Prediction] = {}

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        for image in images:
            if image not in self.answers:
                (self.answers[image],) = self.inner.predict([image])
        return [self.answers[image] for image in images]


def make_world(root: Path) -> World:
    """Tiny bundles that differ in their threshold, published to folders, with a probe of ten images."""
    first, second = (_probed(tiny_bundle(root / f"plain-{t}", threshold=t), root / f"bundle-{t}", root / "images")
                     for t in (0.4, 0.45))  # fmt: skip
    releases = (publish(first.path, root / "root"), publish(second.path, root / "root"))
    return World(root / "images", (first, second), releases)


def _probed(bundle: Bundle, target: Path, images: Path) -> Bundle:
    """The bundle with a probe, whose images it gets right because they are filed under its answers."""
    session = open_session(bundle.file(contract.ONNX_FILE), "cpu")
    entries = []
    for seed in range(10):
        data = xray(seed, (64, 64))
        pixels = preprocess([data], bundle.manifest.preprocessing)
        (logits,) = session.run([contract.TENSOR_OUTPUT], {contract.TENSOR_INPUT: pixels})
        entries.append({"sha256": sha256(data).hexdigest(), "logits": [float(x) for x in logits[0]]})
        margin = (logits[0][1] - logits[0][0]) / bundle.manifest.temperature
        label = contract.LABELS[int(1 / (1 + np.exp(-margin)) >= bundle.manifest.threshold)]
        if not list(images.glob(f"*/{seed}.jpeg")):
            (images / label).mkdir(parents=True, exist_ok=True)
            (images / label / f"{seed}.jpeg").write_bytes(data)
    probe = target.parent / f"{target.name}.json"
    probe.write_text(json.dumps({"images": entries}))
    return open_bundle(extend_bundle(bundle, target, {contract.PROBE_FILE: probe}).path)


def inference_service(uri: str, replicas: int = 1) -> dict[str, Any]:
    """As the chart renders it."""
    model = {"modelFormat": {"name": "triton", "version": "2"}, "protocolVersion": "v2", "runtime": SERVICE,
             "storageUri": uri}  # fmt: skip
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": SERVICE, "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {"predictor": {"minReplicas": replicas, "maxReplicas": 4, "model": model}},
    }


def install(cluster: FakeCluster, uri: str, replicas: int = 1) -> None:
    """What `helm install` does."""
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices"
    cluster.request("POST", path, inference_service(uri, replicas))
    service = {
        "metadata": {"name": SERVICE},
        "spec": {"selector": {"app": f"isvc.{SERVICE}-predictor"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    cluster.request("POST", f"/api/v1/namespaces/{NAMESPACE}/services", service)
    cluster.settle()
    cluster.log.clear()


def spec_of(cluster: FakeCluster) -> Mapping[str, Any]:
    """The InferenceService's spec."""
    return dict(cluster.objects["inferenceservices", NAMESPACE, SERVICE]["spec"])
