"""The documented command on a real backend: from phantoms to a release, and what the cache answers the second time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pneumonia.pipelines.cluster import Run
from tests.kubeflow.conftest import OPEN_GATE, Backend, step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = {"check", "fetch", "prepare", "train", "evaluate", "gate", "export", "publish", "notify"}
CACHED = ("fetch", "prepare", "train", "evaluate", "export")
MOST_PODS = 22
STEPS_OF_A_RUN = 1000


def again(backend: Backend, *more: str, **settings: str) -> Run:
    """A run to its end with this session's data. more: overrides."""
    # Of the first run enough steps that the work, and not the start of pods, is most of the time.
    steps = 3 if settings.get("experiment") else STEPS_OF_A_RUN
    data = ("data.num_images=160", f"data.seed={backend.seed}")
    given = (*data, f"training.max_steps={steps}", "evaluation.recall_target=0.5", *more)
    overrides = ",".join(f'"{item}"' for item in given)
    return backend.ended(backend.submit(f"overrides=[{overrides}]", **{"gate": OPEN_GATE, **settings}))


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
    assert "train: " in backend.pneumoctl("logs", first.run_id, "train").stdout
    assert f", trained by run {first.run_id}" in backend.pneumoctl("logs", first.run_id, "publish").stdout


def test_a_run_has_few_pods(backend: Backend, first: Run, kubectl: Callable[..., str]) -> None:
    pods = kubectl("get", "pods", "-l", f"pipeline/runid={first.run_id}", "-o", "name").split()
    assert len(STEPS) < len(pods) <= MOST_PODS


def test_the_same_again_is_answered_from_the_cache(backend: Backend, first: Run) -> None:
    run = again(backend)
    assert run.state == "SUCCEEDED", run
    assert {name: step(run, name).state for name in CACHED} == dict.fromkeys(CACHED, "CACHED")
    assert run.seconds < first.seconds / 2
    # The model is still that of the run that trained it.
    assert f", trained by run {first.run_id}" in backend.pneumoctl("logs", run.run_id, "publish").stdout


def test_another_setting_is_trained_anew(backend: Backend, first: Run) -> None:
    run = again(backend, "model.learning_rate=0.0007")
    assert run.state == "SUCCEEDED", run
    assert step(run, "train").state == "SUCCEEDED"


def test_another_experiment_is_trained_anew(backend: Backend, first: Run) -> None:
    run = again(backend, experiment="local")
    assert step(run, "train").state == "SUCCEEDED"
