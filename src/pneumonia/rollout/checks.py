"""What a canary has to show before patients' images reach it: right answers, the model that was tested, and speed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.core.prediction import Prediction
from pneumonia.errors import DataError, NoAnswer, PneumoniaError, ServerUnavailable
from pneumonia.inference.predictor import Predictor

MAX_PROBABILITY_GAP = 1e-3
"""Largest difference of P(PNEUMONIA) between the bundle's probe and a server that computes in float32."""
MIN_ACCURACY = 0.85
"""Least share of right answers on the labelled images: well below what the gate asks for, well above what swapped
labels or another preprocessing leave."""
MIN_IMAGES = 8
MAX_SLOWDOWN = 1.25
LATENCY_REQUESTS = 200
_WARM_UP = 10
_ATTEMPTS = 3
"""A second after the first, two after the second: a pod that is replaced meanwhile is not a broken one."""


@dataclass(frozen=True)
class ProbeImage:
    """One test image, its true label, and the calibrated P(PNEUMONIA) that the bundle's probe expects for it."""

    path: Path
    data: bytes
    label: int
    probability: float


@dataclass
class Findings:
    """reasons: why not, empty where all is well. notes: what could not be looked at. figures: what was measured."""

    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


def load_probe(bundle: Bundle, images: Path) -> list[ProbeImage]:
    """The images of the bundle's probe, found by digest among the labelled images of a folder.

    images: a folder as for data=folder, or what `pneumoctl data fetch` wrote. The probe's images are of the test
    split, so the model has never seen them. Raises DataError where the folder holds fewer than 8 of them or only one
    class, BundleError where the bundle has no probe.
    """
    from pneumonia.data.sources import SOURCE_FILE, read_source
    from pneumonia.data.sources.folder import list_images

    entries = json.loads(bundle.file(contract.PROBE_FILE).read_text("utf-8"))["images"]
    expected = {entry["sha256"]: entry["logits"] for entry in entries}
    root = images / read_source(images)["root"] if (images / SOURCE_FILE).is_file() else images
    found: dict[str, ProbeImage] = {}
    for listed in list_images(root):
        data = (root / listed.path).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest in expected and digest not in found:
            (probability,) = bundle.manifest.point.probability(np.array([expected[digest]]))
            found[digest] = ProbeImage(root / listed.path, data, listed.label, float(probability))
            if len(found) == len(expected):
                break
    probe = [found[digest] for digest in expected if digest in found]
    if len(probe) < min(MIN_IMAGES, len(expected)) or len({image.label for image in probe}) < len(contract.LABELS):
        raise DataError(
            f"{images}: has {len(probe)} of the {len(expected)} test images in {bundle.path / contract.PROBE_FILE}, "
            f"expected at least {MIN_IMAGES} and both classes; give the images that the bundle was tested with"
        )
    return probe


SERVED_FORMS = {"python": ("onnx", "int8"), "onnxruntime": ("onnx",), "tensorrt": ("tensorrt",)}
"""Forms of the model, as parity names them, that a release of each backend may answer with."""


def allowed_gap(bundle: Bundle, backend: str | None = None) -> float:
    """How far served answers may be from the probe: float32's rounding, beside what the forms that the release's
    backend serves were shown to differ by when they were made; their gate of parity they have passed.

    backend: None where it is not known; then the loosest of all forms counts.
    """
    parity = bundle.manifest.metrics.get("parity", {})
    forms = [form for name, form in parity.items() if backend is None or name in SERVED_FORMS.get(backend, (name,))]
    return MAX_PROBABILITY_GAP + max((float(form["max_gap"]) for form in forms), default=0.0)


def check_answers(
    predictor: Predictor,
    probe: Sequence[ProbeImage],
    bundle: Bundle,
    max_gap: float | None = None,
    min_accuracy: float = MIN_ACCURACY,
    backend: str | None = None,
) -> Findings:
    """Ask the server itself: is it this bundle, does it answer as in the test, is it right about labelled images?

    max_gap: None for allowed_gap(bundle, backend).
    """
    findings, max_gap = Findings(), allowed_gap(bundle, backend) if max_gap is None else max_gap
    try:
        answers = predictor.predict([image.data for image in probe])
    except PneumoniaError as error:
        findings.reasons.append(f"it does not answer the probe: {error}")
        return findings
    if others := sorted({answer.model_id for answer in answers} - {bundle.model_id}):
        findings.reasons.append(f"it serves {', '.join(others)}, expected {bundle.model_id}")
    gap = max(abs(answer.probability - image.probability) for answer, image in zip(answers, probe, strict=True))
    flipped = sum(
        _flipped(answer, image, bundle.manifest.threshold, max_gap)
        for answer, image in zip(answers, probe, strict=True)
    )
    right = np.mean(
        [answer.label == contract.LABELS[image.label] for answer, image in zip(answers, probe, strict=True)]
    )
    findings.figures = {"images": float(len(probe)), "probe_max_gap": gap, "accuracy": float(right)}
    # `not <=` also refuses NaN, which compares false with everything.
    if not gap <= max_gap:
        findings.reasons.append(
            f"P(PNEUMONIA) is up to {gap:.2e} from the bundle's probe on {len(probe)} images, at most {max_gap:g} is "
            "allowed"
        )
    if flipped:
        findings.reasons.append(f"{flipped} of {len(probe)} probe images get another label than in the test")
    if not right >= min_accuracy:
        findings.reasons.append(
            f"it is right about {right:.3f} of {len(probe)} labelled images, at least {min_accuracy:g} needed"
        )
    return findings


def _flipped(answer: Prediction, image: ProbeImage, threshold: float, max_gap: float) -> bool:
    """Another label than the probe's, where the probe is not so near the threshold that rounding decides."""
    expected = contract.LABELS[int(image.probability >= threshold)]
    return answer.label != expected and abs(image.probability - threshold) > max_gap


def check_latency(
    stable: Predictor,
    canary: Predictor,
    images: Sequence[ProbeImage],
    requests: int = LATENCY_REQUESTS,
    max_slowdown: float = MAX_SLOWDOWN,
) -> Findings:
    """p95 of single images, `requests` to each, taking turns so that whatever else happens meanwhile meets both.

    Where the first comparison says no it is done once more, and both count together: a p95 of 200 is uncertain. A
    stable predictor that is broken is no reason to keep it: its successor is then not compared, and a note says so.
    """
    if silence := _silence(stable, images[0].data):
        return Findings(notes=[f"speeds were not compared, since the stable predictor does not answer: {silence}"])
    findings = Findings()
    servers = {"stable": stable, "canary": canary}
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    try:
        for _ in range(2):
            for turn in range(requests + _WARM_UP):
                # Each goes first every other time.
                for name in sorted(servers, reverse=bool(turn % 2)):
                    taken = _timed(servers[name], images[turn % len(images)].data, name)
                    if turn >= _WARM_UP:
                        seconds[name].append(taken)
            p95 = {name: float(np.percentile(taken, 95)) for name, taken in seconds.items()}
            if p95["canary"] <= max_slowdown * p95["stable"]:
                break
    except PneumoniaError as error:
        findings.reasons.append(f"its speed cannot be compared: {error}")
        return findings
    findings.figures = {f"{name}_p95_ms": round(1000 * value, 3) for name, value in p95.items()}
    findings.figures["latency_requests"] = float(len(seconds["canary"]))
    if not p95["canary"] <= max_slowdown * p95["stable"]:
        findings.reasons.append(
            f"p95 is {1000 * p95['canary']:.1f} ms against {1000 * p95['stable']:.1f} ms of the stable predictor over "
            f"{len(seconds['canary'])} requests, at most {max_slowdown:g} times as much allowed"
        )
    return findings


def _silence(server: Predictor, image: bytes) -> str:
    """Why a server answers none of several requests; empty where it does, or is only busy."""
    silence = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt)
        try:
            server.predict([image])
            return ""
        except (ServerUnavailable, NoAnswer) as error:
            if isinstance(error, ServerUnavailable) and error.busy:
                return ""
            silence = str(error)
    return silence


def _timed(server: Predictor, image: bytes, name: str) -> float:
    began = time.perf_counter()
    try:
        server.predict([image])
    except PneumoniaError as error:
        raise PneumoniaError(f"the {name} predictor does not answer: {error}") from error
    return time.perf_counter() - began
