"""The client's eyes against what a real Kubeflow answered; skips where those answers are not beside the checkout."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pneumonia.pipelines.cluster import reason_of, state_of
from pneumonia.pipelines.nodes import FAILED, Step, limit_of, own_lines, steps_of, with_log
from tests.conftest import ROOT
from tests.pipelines.kubeflow import LAUNCHED, ended, workflow

RECORDINGS = Path(os.environ.get("PNEUMONIA_RECORDINGS") or ROOT.parent / "shared" / "recordings") / "kubeflow"
pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"no recorded answers of Kubeflow at {RECORDINGS}")

TRAINING = ["fetch", "prepare", "train", "evaluate", "gate", "export-onnx", "export-int8", "parity", "publish"]


def recorded(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text("utf-8"))


def steps(name: str) -> dict[str, Step]:
    return {step.name: step for step in steps_of(recorded(f"{name}.workflow"))}


def test_a_run_has_its_ten_steps_by_name() -> None:
    found = steps("01-succeeded")
    assert list(found) == [*TRAINING, "notify"]
    assert {step.state for step in found.values()} == {"SUCCEEDED"}
    assert found["train"].seconds == 10
    assert list(steps("02-second-run-same-inputs")) == [*TRAINING, "notify"]


@pytest.mark.parametrize(
    ("name", "failed"),
    [("03-gate-refused", "gate"), ("04-mistyped-override", "fetch"), ("10-deployed-and-refused", "confirm")],
)
def test_the_step_that_failed_is_named(name: str, failed: str) -> None:
    assert [step.name for step in steps(name).values() if step.state == "FAILED"] == [failed]


def test_a_failed_step_has_its_own_reason_and_exit_code() -> None:
    log = (RECORDINGS / "04-mistyped-override.fetch.log").read_text("utf-8")
    found = with_log(steps("04-mistyped-override")["fetch"], log)
    assert (found.reason, found.exit_code) == ("data.no_such: no such key; the nearest is data.source", 2)
    assert found.pod == recorded("04-mistyped-override.fetch-pod")["metadata"]["name"]
    assert list(own_lines(log)) == ["error: data.no_such: no such key; the nearest is data.source"]


def test_a_good_steps_own_lines() -> None:
    log = (RECORDINGS / "01-succeeded.notify.log").read_text("utf-8")
    assert list(own_lines(log)) == ["notify: pneumonia: pneumonia-train-h8h29: running"]


def test_an_image_that_cannot_be_pulled_is_what_the_run_waits_for() -> None:
    (fetch,) = steps("07-image-cannot-be-pulled").values()
    said = reason_of("RUNNING", 50, [fetch])
    assert said.startswith("step fetch: waiting: waits for its image: ImagePullBackOff")
    assert "nowhere.example" in said


def test_a_terminated_run_is_called_that() -> None:
    run = recorded("11-terminated.run")
    state = state_of(run["state"], [item["state"] for item in run["state_history"]])
    assert (run["state"], state) == ("FAILED", "TERMINATED")
    assert reason_of(state, 90, list(steps("11-terminated").values())) == "terminated by hand while fetch ran"
    assert state_of("FAILED", [item["state"] for item in recorded("03-gate-refused.run")["state_history"]]) == "FAILED"


def test_the_stub_makes_nodes_of_the_recorded_forms() -> None:
    def forms(made: Any) -> set[tuple[str, str, str, bool]]:
        """Template, type, last part of the name with its attempt, and whether the cache's word is among the outputs."""
        found = set()
        for node in made["status"]["nodes"].values():
            template = node["templateName"].removeprefix("retry-")
            attempt = "(0)" if node["name"].endswith("(0)") else ""
            said = [item["name"] for item in (node.get("outputs") or {}).get("parameters", [])]
            if template.startswith("system-container"):
                last = re.sub(r"\(\d+\)$", "", node["name"]).rpartition(".")[2]
                role = "-driver" if last.endswith("-driver") else "executor" if last == "executor" else "step"
                found.add((template, node["type"], role + attempt, "cached-decision" in said))
        return found

    real: set[tuple[str, str, str, bool]] = set()
    for name in ("01-succeeded", "04-mistyped-override", "07-image-cannot-be-pulled"):
        real |= forms(recorded(f"{name}.workflow"))
    stub = workflow(("a", "Succeeded", ""), ("b", "Failed", "x"), ("c", "Pending", "y"), ("d", "Omitted", "z"))
    assert forms(stub) <= real


def test_the_stub_writes_logs_of_the_recorded_form() -> None:
    real = (RECORDINGS / "04-mistyped-override.fetch.log").read_text("utf-8")
    for line in (LAUNCHED + ended(2)).splitlines():
        start = re.sub(r"[\d.]+", "0", line)[:25]
        assert start in re.sub(r"[\d.]+", "0", real), line


@pytest.mark.parametrize(
    ("limit", "ended", "taken"),
    [(144, "2026-12-01T12:55:30Z", 144), (144, "2026-12-01T12:54:57Z", None), (0, "2026-12-01T12:55:30Z", None),
     (None, "2026-12-01T12:55:30Z", None), (144, None, 144)],
)  # fmt: skip
def test_a_run_that_took_longer_than_it_may_is_told_from_one_that_was_terminated(
    limit: int | None, ended: str | None, taken: int | None
) -> None:
    status = {"startedAt": "2026-12-01T12:52:34Z", **({"finishedAt": ended} if ended else {})}
    workflow = {"spec": {} if limit is None else {"activeDeadlineSeconds": limit}, "status": status}
    assert limit_of(workflow) == taken
    failed = Step("train", FAILED, reason="main: Error (exit code 143)")
    said = reason_of("FAILED", 176, [failed], limit_of(workflow))
    assert said.startswith("took longer than the 144 s" if taken else "step train: failed: main: Error")


def test_a_run_that_has_not_begun_has_taken_no_time() -> None:
    assert limit_of({"spec": {"activeDeadlineSeconds": 5}}) is None
