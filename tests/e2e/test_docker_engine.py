"""The pipeline in containers: the same figures as in processes, and no failure that passes for a success."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pneumonia import contract
from pneumonia.bundle import open_bundle
from pneumonia.errors import MissingPrerequisite, StepFailed
from pneumonia.pipelines.containers import RUN_LABEL, STEP_IMAGE_ENV, require_docker, step_image
from pneumonia.pipelines.run import run_pipeline
from pneumonia.release_manifest import verify_release
from tests.pipelines.conftest import toy as toy  # the fixture
from tests.pipelines.test_local_run import OPEN_GATE, TINY, pipeline_run

pytestmark = pytest.mark.docker
REFUSED = "from pneumonia.errors import GateRefused; raise GateRefused(['test recall 0.5 is below 0.92'])"


@pytest.fixture(scope="module", autouse=True)
def docker() -> None:
    """Skip without a daemon or the step image."""
    try:
        require_docker(step_image())
    except MissingPrerequisite as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def tracking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs are recorded here and not in the folder of the tests."""
    monkeypatch.setenv(contract.TRACKING_DIR_ENV, str(tmp_path / "tracking"))


def containers() -> list[str]:
    """Containers of any run, also ended ones."""
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"label={RUN_LABEL}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        (REFUSED, 5, "step act: the gate refused this model: test recall 0.5 is below 0.92"),
        ("import os; os._exit(7)", 1, "ended without a reason"),
        ("import os; os._exit(0)", 1, "ended with success before it wrote its outputs"),
        ("import os; os.kill(os.getppid(), 9); os.kill(os.getpid(), 9)", 1, "ended without a reason"),
    ],
    ids=["refused", "exits-at-once", "exits-with-success", "killed"],
)
def test_a_failed_container_is_a_failed_step(toy: Path, tmp_path: Path, code: str, exit_code: int, reason: str) -> None:
    mark = tmp_path / "runs" / "mark"
    with pytest.raises(StepFailed, match=reason) as caught:
        run_pipeline({"code": code, "mark": str(mark)}, runs=tmp_path / "runs",
                     output=tmp_path / "models", pipeline=toy, engine="docker")  # fmt: skip
    assert caught.value.exit_code == exit_code
    assert not mark.exists(), "the step after the failed one ran"
    assert containers() == []


def test_an_interrupt_ends_the_container(toy: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pneumonia.pipelines.run import run_pipeline\n"
        "run_pipeline({'code': 'import time; time.sleep(120)', 'mark': ''},\n"
        "             runs=Path(sys.argv[1]), pipeline=Path(sys.argv[2]), engine='docker')"
    )
    command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "runs"), str(toy)])
    deadline = time.monotonic() + 60
    while not containers():
        assert time.monotonic() < deadline, "the step did not start"
        time.sleep(0.2)
    command.send_signal(signal.SIGTERM)
    command.wait(30)
    assert containers() == []


def test_an_image_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(STEP_IMAGE_ENV, "pneumonia-step:never-built")
    with pytest.raises(MissingPrerequisite, match="never-built is not on this machine; build it with `make images`"):
        run_pipeline({}, runs=tmp_path / "runs", output=tmp_path / "models", engine="docker")
    assert not (tmp_path / "runs").exists()


def test_no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(MissingPrerequisite, match="--engine subprocess"):
        require_docker(step_image())


@pytest.mark.slow
def test_both_engines_measure_the_same(tmp_path: Path) -> None:
    results: dict[str, dict[str, Any]] = {}
    for engine in ("subprocess", "docker"):
        folder = tmp_path / engine
        folder.mkdir()
        done = pipeline_run(folder, *TINY, *OPEN_GATE, "--engine", engine, "--cache")
        assert done.returncode == 0, done.stderr
        results[engine] = json.loads(done.stdout)
        bundle = open_bundle(folder / "models")
        assert verify_release(Path(results[engine]["release"]))["digest"] == bundle.digest
        print(engine, json.dumps(results[engine]["seconds"]))
    here, contained = results["subprocess"], results["docker"]
    assert contained["metrics"] == pytest.approx(here["metrics"], abs=1e-6)
    assert contained["threshold"] == pytest.approx(here["threshold"], abs=1e-4)
    assert list(contained["seconds"]) == list(here["seconds"])
    again = pipeline_run(tmp_path / "docker", *TINY, *OPEN_GATE, "--engine", "docker", "--cache")
    assert again.returncode == 0, again.stderr
    cached = json.loads(again.stdout)
    assert cached["seconds"]["train"] == 0 and cached["model_id"] == contained["model_id"]
    assert containers() == []
