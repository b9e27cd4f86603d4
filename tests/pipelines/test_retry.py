"""Another try where a network was lost, and none where a person has to do something."""

from __future__ import annotations

import pytest

from pneumonia.errors import ConfigError, PneumoniaError, ServerUnavailable, SourceUnavailable
from pneumonia.pipelines.retry import PAUSES_S, patiently


class Work:
    """Raises each of `errors` once, then returns."""

    def __init__(self, *errors: PneumoniaError) -> None:
        self.errors = list(errors)
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_a_network_that_comes_back_costs_a_pause(capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(ServerUnavailable("no answer"), SourceUnavailable("cut off", transient=True))
    assert patiently(work, (0, 0)) == "done"
    assert work.tries == 3
    assert capsys.readouterr().err.splitlines()[0] == "retry: no answer; trying again in 0 s"


@pytest.mark.parametrize(
    "error", [ConfigError("no such key"), SourceUnavailable("no credentials"), ServerUnavailable("no", transient=False)]
)
def test_what_stays_wrong_is_tried_once(error: PneumoniaError) -> None:
    work = Work(error)
    with pytest.raises(type(error)):
        patiently(work, (0, 0, 0))
    assert work.tries == 1


def test_a_network_that_stays_away_is_given_up() -> None:
    work = Work(*[ServerUnavailable("no answer")] * 9)
    with pytest.raises(ServerUnavailable):
        patiently(work, (0, 0))
    assert work.tries == 3


@pytest.mark.parametrize("in_pod", [True, False])
def test_only_a_pod_waits_by_itself(monkeypatch: pytest.MonkeyPatch, in_pod: bool) -> None:
    slept: list[float] = []
    monkeypatch.setattr("pneumonia.pipelines.retry.time.sleep", slept.append)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ServerUnavailable):
        patiently(Work(*[ServerUnavailable("no answer")] * 9))
    assert slept == (list(PAUSES_S) if in_pod else [])
