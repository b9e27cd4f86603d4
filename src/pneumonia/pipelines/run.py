"""Run the compiled training pipeline on this machine: the same graph that a cluster gets."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.core.signals import terminate_as_interrupt
from pneumonia.errors import DependencyMissing, MissingPrerequisite, PneumoniaError, StepFailed, UsageError
from pneumonia.files import check_replaceable, replace_directory, write_json
from pneumonia.pipelines.containers import require_docker, step_image, stop_containers
from pneumonia.pipelines.engine import CACHED_FILE
from pneumonia.pipelines.step import ERROR_DIR_ENV

ENGINES = ("subprocess", "docker")
LOG_FILE = "pipeline.log"
KILL_AFTER_S = 10.0
CACHE_DIR = ".cache"
"""In the folder of runs: which outputs of earlier runs answer which inputs."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '(.+)'$")
_FAILED = re.compile(r"Task '(.+)' finished with status FAILURE$")
_CACHED = re.compile(r"Task '?([^' ]+)'? cache hit")
_FINISHED = re.compile(r"Task '(.+)' finished with status SUCCESS$")
# kfp.local indents what a step writes by four spaces; the library's own progress reads "<part>: <what>".
_PROGRESS = re.compile(r"^ {4}(?!error:)([a-z][a-z0-9 _-]*: .+)$")


@dataclass(frozen=True)
class PipelineRun:
    """Where a finished run left its parts. fetched: the images, unpacked. seconds: by step, in the order they ran."""

    path: Path
    bundle: Bundle
    fetched: Path
    prepared: Path
    evaluation: Path
    release: Path
    log: Path
    seconds: Mapping[str, float]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.evaluation / contract.REPORT_FILE

    def metrics(self) -> dict[str, Any]:
        """What the evaluation measured."""
        return dict(json.loads((self.evaluation / contract.METRICS_FILE).read_text("utf-8")))

    def verdict(self) -> dict[str, Any]:
        """The gate's figures: {name: {"value", "least"}}, "most" for an upper bound."""
        return dict(json.loads(artifact(self.path, "gate", "verdict").read_text("utf-8")))


def compiled_pipeline(name: str = "train") -> Path:
    """The compiled pipeline: packaged with the library or, in a checkout, pipelines/<name>.yaml."""
    here = Path(__file__).resolve().parent
    # A checkout first: a stale copy in site-packages of an editable install must not win.
    for candidate in (here.parents[2] / "pipelines" / f"{name}.yaml", here / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    raise MissingPrerequisite(f"no compiled pipeline {name}.yaml; run `make generate` in a checkout, or reinstall")


def run_pipeline(
    arguments: Mapping[str, Any],
    *,
    runs: Path = Path("pipeline_runs"),
    output: Path = Path(contract.BUNDLE_DIR),
    engine: str = "subprocess",
    pipeline: Path | None = None,
    cache: bool = False,
) -> PipelineRun:
    """Run the training pipeline and install its bundle at `output`.

    arguments: the pipeline's parameters (release_root, experiment, source, data_root, overrides). Progress goes to
    stderr, everything to <runs>/<timestamp>/pipeline.log. cache: steps whose inputs are those of an earlier run of this
    library version take its outputs, except those that are never cached (pipelines/train.py).

    Raises StepFailed with the failed step's reason and exit code, UsageError where `output` holds something other than
    a bundle, DependencyMissing without kfp, MissingPrerequisite for engine="docker" without a Docker daemon or the step
    image.
    """
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: not one of {', '.join(ENGINES)}")
    if importlib.util.find_spec("kfp") is None:
        raise DependencyMissing("kfp is not installed; pip install 'pneumonia[train,pipelines,serve]'")
    if engine == "docker":
        require_docker(step_image())
    from pneumonia.pipelines.tasks import unpack

    check_replaceable(output, contract.BUNDLE_MANIFEST)
    compiled = pipeline or compiled_pipeline()
    folder = _new_run(runs)
    progress, code = run_graph(compiled, arguments, folder, engine, runs / CACHE_DIR if cache else None)
    log = folder / LOG_FILE
    if code != 0 or progress.running:
        raise _failure(folder, progress.failed or progress.running, log)
    bundle = install_bundle(artifact(folder, "export", "bundle"), output)
    release = Path(json.loads(artifact(folder, "publish", "release").read_text("utf-8"))["release"])
    return PipelineRun(
        path=folder,
        bundle=bundle,
        fetched=unpack(artifact(folder, "fetch", "fetched"), folder / "images"),
        prepared=artifact(folder, "prepare", "prepared"),
        evaluation=artifact(folder, "evaluate", "evaluation"),
        release=release,
        log=log,
        seconds=progress.seconds,
    )


def run_graph(
    pipeline: Path, arguments: Mapping[str, Any], folder: Path, engine: str, cache: Path | None = None
) -> tuple[Progress, int]:
    """Run any compiled pipeline in the existing folder `folder`; what it did, and the engine's exit status."""
    log = folder / LOG_FILE
    print(f"pipeline: run {folder}, log {log}", file=sys.stderr, flush=True)
    # Short and private: kfp leaves a folder a step in TMPDIR, and sockets under it allow about 100 characters.
    with tempfile.TemporaryDirectory(prefix="pneumonia-") as scratch:
        request = {"engine": engine, "pipeline": str(pipeline), "arguments": dict(arguments), "root": str(folder),
                   "scratch": scratch, "cache": str(cache.resolve()) if cache else None}  # fmt: skip
        write_json(folder / "request.json", request)
        try:
            return _drive(folder, Path(scratch), log)
        except BaseException:
            if engine == "docker":
                stop_containers(folder)
            raise


def artifact(run: Path, task: str, name: str) -> Path:
    """Where kfp.local put an output: <run>/<pipeline and time>/<task>/<name>, be it of the run it was taken from.

    Raises PneumoniaError without one.
    """
    found = sorted(run.glob(f"*/{task}/{name}"))
    if not found and (run / CACHED_FILE).is_file():
        taken = map(Path, (run / CACHED_FILE).read_text("utf-8").splitlines())
        found = [path for path in taken if path.match(f"{task}/{name}")]
    if not found:
        raise PneumoniaError(f"step {task} ended without its output {name}; see {run / LOG_FILE}")
    return found[-1]


def install_bundle(source: Path, target: Path) -> Bundle:
    """Copy the bundle at `source` to `target`, whole or not at all; returns it opened and verified."""
    check_replaceable(target, contract.BUNDLE_MANIFEST)
    bundle = open_bundle(source)
    with replace_directory(target) as building:
        for name in (contract.BUNDLE_MANIFEST, *bundle.manifest.files):
            shutil.copyfile(source / name, building / name)
    return open_bundle(target)


def _new_run(runs: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        folder = runs.resolve() / f"{stamp}{suffix}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise PneumoniaError(f"{runs}: a hundred runs started in one second; start them apart")


class Progress:
    """Follows the engine's output: all of it to the log, what a person wants to see to stderr."""

    def __init__(self, run: Path, log: IO[str]) -> None:
        self.run = run
        self.log = log
        self.running: str | None = None
        self.failed: str | None = None
        """The first step that failed; the exit handler still runs after it."""
        self.seconds: dict[str, float] = {}
        self._began = 0.0

    def line(self, raw: str) -> None:
        """Take one line of output. Raises StepFailed where a step ended with success and left no outputs."""
        text = _ANSI.sub("", raw.rstrip("\n"))
        print(text, file=self.log, flush=True)
        if started := _STARTED.search(text):
            self.running, self._began = started[1], time.monotonic()
            self._say(f"pipeline: {self.running} ...")
        elif failed := _FAILED.search(text):
            self.failed, self.running = self.failed or failed[1], None
        elif (finished := _FINISHED.search(text)) and finished[1] == self.running:
            self._require_outputs(finished[1])
            seconds = self.seconds[finished[1]] = round(time.monotonic() - self._began, 1)
            self._say(f"pipeline: {finished[1]} done in {seconds:.1f} s")
            self.running = None
        elif cached := _CACHED.search(text):
            self.seconds[cached[1]] = 0.0
            self._say(f"pipeline: {cached[1]} taken from an earlier run")
        elif self.running and (shown := _PROGRESS.match(text)):
            self._say(f"  {shown[1]}")

    def _require_outputs(self, task: str) -> None:
        # A step that ends with status 0 before its work is done counts as a success to kfp.local.
        if not any(self.run.glob(f"*/{task}/executor_output.json")):
            raise StepFailed(task, f"ended with success before it wrote its outputs; see {self.run / LOG_FILE}", 1)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _drive(folder: Path, scratch: Path, log: Path) -> tuple[Progress, int]:
    """Run the engine process to its end and follow it. It and its steps go when this process is stopped."""
    (folder / "errors").mkdir()
    environment = {
        **os.environ,
        ERROR_DIR_ENV: str(folder / "errors"),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
        # One record for all steps, where `make mlflow` looks for it.
        contract.TRACKING_DIR_ENV: os.environ.get(
            contract.TRACKING_DIR_ENV, str(Path(contract.TRACKING_DIR).resolve())
        ),
    }
    command = [sys.executable, "-m", "pneumonia.pipelines.engine", str(folder / "request.json")]
    with log.open("w", encoding="utf-8") as stream, terminate_as_interrupt():
        progress = Progress(folder, stream)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                progress.line(line)
            return progress, process.wait()
        except BaseException as error:
            _stop_group(process)
            if isinstance(error, KeyboardInterrupt):
                print(f"pipeline: interrupted, log {log}", file=sys.stderr)
            raise


def _stop_group(process: subprocess.Popen[str]) -> None:
    """Stop the engine and every step it started: they share its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_AFTER_S)
            # The engine is gone; a step that ignored the signal is not.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return


def _failure(folder: Path, running: str | None, log: Path) -> StepFailed:
    """The reason that the failed step left behind, on one line."""
    print(f"pipeline: {running or 'the engine'} failed, log {log}", file=sys.stderr, flush=True)
    for report in folder.glob(f"*/evaluate/evaluation/{contract.REPORT_FILE}"):
        print(f"pipeline: report {report}", file=sys.stderr, flush=True)
    for file in (folder / "errors").glob("*.json"):
        left = json.loads(file.read_text("utf-8"))
        return StepFailed(left["step"], " ".join(left["reason"].split()), int(left["exit_code"]))
    reason = f"ended without a reason, as when it is killed for want of memory; see {log}"
    return StepFailed(running or "engine", reason, 1)
