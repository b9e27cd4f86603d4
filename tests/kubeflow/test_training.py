"""The documented command on a real backend: from phantoms to a release, and what the cache answers the second time."""

from __future__ import annotations

import pytest

from pneumonia.pipelines.cluster import Run
from tests.kubeflow.conftest import Backend, step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = {"fetch", "prepare", "train", "evaluate", "gate", "export-onnx", "export-int8", "parity", "publish", "notify"}
SETTINGS = {f"gate_{name}": "0" for name in ("accuracy", "precision", "recall", "f1", "recall_low")}
SETTINGS |= {"recall_target": "0.5"}
CACHED = ("train", "evaluate", "export-onnx", "export-int8")


def again(backend: Backend, *more: str, **settings: str) -> Run:
    """A run to its end with this session's data. more: overrides."""
    overrides = ",".join(f'"{item}"' for item in ("data.num_images=160", f"data.seed={backend.seed}", *more))
    return backend.ended(backend.submit(f"overrides=[{overrides}]", **{**SETTINGS, **settings}))


@pytest.fixture(scope="module")
def first(backend: Backend) -> Run:
    """The first run with data that no run before it had."""
    return again(backend)


def test_from_phantoms_to_a_release(backend: Backend, first: Run) -> None:
    assert first.state == "SUCCEEDED", first
    assert {item.name for item in first.steps} == STEPS
    assert {item.state for item in first.steps} == {"SUCCEEDED"}
    assert backend.said(first).endswith(": succeeded")
    assert backend.pneumoctl("status", first.run_id).returncode == 0
    assert backend.pneumoctl("logs", first.run_id, "publish").stdout


def test_the_same_again_is_answered_from_the_cache(backend: Backend, first: Run) -> None:
    run = again(backend)
    assert run.state == "SUCCEEDED", run
    assert {name: step(run, name).state for name in CACHED} == dict.fromkeys(CACHED, "CACHED")
    assert run.seconds < first.seconds / 2


def test_another_setting_is_trained_anew(backend: Backend, first: Run) -> None:
    run = again(backend, "training.learning_rate=0.0007")
    assert run.state == "SUCCEEDED", run
    assert step(run, "train").state == "SUCCEEDED"
