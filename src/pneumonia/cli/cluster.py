"""`pneumoctl pipeline compile`, `submit`, `schedule`, `status` and `logs`: the pipelines on Kubeflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pneumonia.pipelines.cluster import Run

_HOST = typer.Option(None, help="Kubeflow Pipelines, such as http://localhost:8080; default: $KF_PIPELINES_ENDPOINT.")
_NAMESPACE = typer.Option(None, help="Namespace of a multi-user Kubeflow.")
_PIPELINE = typer.Option("train", help="Which pipeline: train, score; or a compiled file.")
_EXPERIMENT = typer.Option("pneumonia", "--experiment", "-e", help="Kubeflow's experiment, which groups runs.")
_IMAGE = typer.Option(None, help="Step image as the cluster finds it; default: as compiled.")
_CUDA_IMAGE = typer.Option(None, help="Step image with CUDA as the cluster finds it; default: as compiled.")
_PARAMETERS = typer.Argument(None, metavar="[NAME=VALUE]...", help="The pipeline's parameters, such as gpus=1.")


def add_to(group: typer.Typer) -> None:
    """Add the commands of this module to `pneumoctl pipeline`."""
    group.command("compile")(compile_)
    for command in (submit, schedule, status, logs):
        group.command(command.__name__)(command)


def compile_(
    pipeline: str = typer.Argument("train", help="Which pipeline: train, score."),
    output: Path = typer.Option(..., "--output", "-o", help="File to write, such as train.yaml."),
    image: str | None = _IMAGE,
    cuda_image: str | None = _CUDA_IMAGE,
) -> None:
    """Write a compiled pipeline, with step images of your registry, to give to Kubeflow by other means."""
    from pneumonia.pipelines.cluster import compile_pipeline

    print(json.dumps({"pipeline": str(compile_pipeline(pipeline, output, image=image, cuda_image=cuda_image))}))


@contextmanager
def _package(pipeline: str, image: str | None, cuda_image: str | None) -> Iterator[Path]:
    """The compiled file to submit."""
    import tempfile

    from pneumonia.pipelines.cluster import compile_pipeline

    if pipeline.endswith((".yaml", ".yml")):
        yield Path(pipeline)
        return
    with tempfile.TemporaryDirectory(prefix="pneumonia-pipeline.") as folder:
        yield compile_pipeline(pipeline, Path(folder) / f"{pipeline}.yaml", image=image, cuda_image=cuda_image)


def _parsed(parameters: list[str] | None) -> dict[str, str]:
    from pneumonia.errors import UsageError

    for item in parameters or []:
        if "=" not in item:
            raise UsageError(f"{item}: a parameter is NAME=VALUE, such as gpus=1")
    return dict(item.partition("=")[::2] for item in parameters or [])


def submit(
    parameters: list[str] | None = _PARAMETERS,
    pipeline: str = _PIPELINE,
    experiment: str = _EXPERIMENT,
    name: str | None = typer.Option(None, help="Name of the run; default: the file's and the time."),
    image: str | None = _IMAGE,
    cuda_image: str | None = _CUDA_IMAGE,
    host: str | None = _HOST,
    namespace: str | None = _NAMESPACE,
) -> None:
    """Start a run on Kubeflow; prints its id as JSON."""
    from pneumonia.pipelines.cluster import Kubeflow, check_arguments

    with _package(pipeline, image, cuda_image) as package:
        arguments = check_arguments(package, _parsed(parameters))
        print(json.dumps({"run_id": Kubeflow(host, namespace).submit(package, arguments, experiment, name)}))


def schedule(
    parameters: list[str] | None = _PARAMETERS,
    cron: str = typer.Option(..., help="When: six fields, seconds first, such as '0 0 3 * * *' for three at night."),
    name: str = typer.Option("pneumonia", help="Name of the schedule."),
    pipeline: str = _PIPELINE,
    experiment: str = _EXPERIMENT,
    image: str | None = _IMAGE,
    cuda_image: str | None = _CUDA_IMAGE,
    host: str | None = _HOST,
    namespace: str | None = _NAMESPACE,
) -> None:
    """Start a run on Kubeflow again and again, one at a time; prints the schedule's id as JSON."""
    from pneumonia.pipelines.cluster import Kubeflow, check_arguments

    with _package(pipeline, image, cuda_image) as package:
        arguments = check_arguments(package, _parsed(parameters))
        made = Kubeflow(host, namespace).schedule(package, arguments, experiment, name, cron)
    print(json.dumps({"schedule_id": made}))


def status(
    run_id: str = typer.Argument(..., help="Id that submit printed."),
    host: str | None = _HOST,
    namespace: str | None = _NAMESPACE,
) -> None:
    """Show a run and its steps as JSON; exits 1 where it failed, with the reason last on stderr."""
    from dataclasses import asdict

    from pneumonia.errors import StepFailed
    from pneumonia.pipelines.cluster import Kubeflow

    run = Kubeflow(host, namespace).run(run_id)
    print(json.dumps(asdict(run), indent=2))
    if run.state == "FAILED":
        raise StepFailed(*_failure(run), 1)


def _failure(run: Run) -> tuple[str, str]:
    """Step and reason; see find_task for why the last."""
    failed = next((task for task in reversed(run.tasks) if task.state == "FAILED" and task.pod), None)
    if failed is None:
        return "run", run.reason or "failed without a reason"
    return failed.name, failed.reason or f"failed; see `pneumoctl pipeline logs {run.run_id}`"


def logs(
    run_id: str = typer.Argument(..., help="Id that submit printed."),
    step: str | None = typer.Argument(None, help="Step; default: that which failed, else the last that began."),
    host: str | None = _HOST,
    namespace: str | None = _NAMESPACE,
) -> None:
    """Print what a step of a run has written."""
    from pneumonia.pipelines.cluster import Kubeflow, find_task

    kubeflow = Kubeflow(host, namespace)
    task = find_task(kubeflow.run(run_id), step)
    print(kubeflow.log(run_id, task.pod), end="")
