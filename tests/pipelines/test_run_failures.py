"""A failing step is reported as failed, with its reason last, its own exit code, and nothing after it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pneumonia.errors import PneumoniaError, StepFailed, UsageError
from pneumonia.pipelines.run import LOG_FILE, run_pipeline

REFUSED = "from pneumonia.errors import GateRefused; raise GateRefused(['test recall 0.5 is below 0.92'])"


def fail(pipeline: Path, folder: Path, code: str) -> StepFailed:
    """Run a pipeline that must fail in its first step."""
    mark = folder / "mark"
    with pytest.raises(StepFailed) as caught:
        run_pipeline(
            {"code": code, "mark": str(mark)}, runs=folder / "runs", output=folder / "models", pipeline=pipeline
        )
    assert not mark.exists(), "the step after the failed one ran"
    assert not (folder / "models").exists(), "a failed run left a bundle"
    return caught.value


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        (REFUSED, 5, "step act: the gate refused this model: test recall 0.5 is below 0.92"),
        ("raise ValueError('two\\nlines')", 1, "step act: ValueError: two lines"),
        ("import nosuchpackage", 4, "step act: nosuchpackage is not installed"),
        ("import os; os._exit(7)", 1, "ended without a reason"),
        ("import os; os._exit(0)", 1, "ended with success before it wrote its outputs"),
        ("import os; os.kill(os.getpid(), 9)", 1, "ended without a reason"),
    ],
    ids=["refused", "unexpected", "package", "exits-at-once", "exits-with-success", "killed"],
)
def test_failure_keeps_reason_and_exit_code(toy: Path, tmp_path: Path, code: str, exit_code: int, reason: str) -> None:
    error = fail(toy, tmp_path, code)
    assert error.exit_code == exit_code
    assert reason in str(error)
    assert "\n" not in str(error)


def test_noise_goes_to_the_log_and_progress_to_stderr(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('train: step 1/2', file=sys.stderr); print('Noise'); raise ValueError('why')"
    fail(toy, tmp_path, code)
    out, err = capfd.readouterr()
    assert out == ""
    assert "  train: step 1/2" in err.splitlines()
    assert "Noise" not in err
    assert "KFP Executor" not in err
    assert "Traceback" not in err
    (log,) = tmp_path.glob(f"runs/*/{LOG_FILE}")
    text = log.read_text("utf-8")
    assert "Noise" in text
    assert "Traceback" in text


def test_another_version_refuses(tmp_path: Path) -> None:
    code = "from pneumonia.pipelines.step import step\nwith step('train', '0.0.0'):\n    print('ran')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == UsageError.exit_code
    assert done.stdout == ""
    assert "0.0.0" in done.stderr


def test_paths_with_spaces_and_python3(toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my python3 runs"
    code = f"import sys; print('act: ' + sys.executable, file=sys.stderr); raise ValueError({str(folder)!r})"
    error = fail(toy, folder, code)
    assert str(folder) in str(error)
    (log,) = folder.glob(f"runs/*/{LOG_FILE}")
    assert f"act: {sys.executable}" in log.read_text("utf-8"), "the steps run another interpreter"


def test_output_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="and would be replaced as a whole"):
        run_pipeline({}, runs=tmp_path / "runs", output=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years"
    assert not (tmp_path / "runs").exists()


def test_unknown_engine() -> None:
    with pytest.raises(UsageError, match="subprocess"):
        run_pipeline({}, engine="argo")


def test_missing_output_is_an_error(tmp_path: Path) -> None:
    from pneumonia.pipelines.run import artifact

    with pytest.raises(PneumoniaError, match="verdict"):
        artifact(tmp_path, "gate", "verdict")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_command_stops_the_step(toy: Path, tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    step = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(120)"
    code = (
        "import sys; from pathlib import Path; from pneumonia.pipelines.run import run_pipeline\n"
        "run_pipeline({'code': sys.argv[1], 'mark': sys.argv[2]}, runs=Path(sys.argv[3]), pipeline=Path(sys.argv[4]))"
    )
    values = [step, str(tmp_path / "mark"), str(tmp_path / "runs"), str(toy)]
    command = subprocess.Popen([sys.executable, "-c", code, *values], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline, "the step did not start"
        time.sleep(0.1)
    command.send_signal(number)
    command.wait(30)
    deadline = time.monotonic() + 15
    while alive(int(pid_file.read_text())):
        assert time.monotonic() < deadline, "the step outlived the command"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its new parent to notice does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
