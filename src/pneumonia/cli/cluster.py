"""`pneumoctl pipeline compile`, `submit`, `schedule`, `status` and `logs`: the pipelines on Kubeflow."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pneumonia.pipelines.cluster import Run

RUNNING_EXIT, TERMINATED_EXIT = 10, 130
"""Exit codes of status for a run that has not ended, and one that somebody ended; 0 succeeded, 1 failed."""
_HOST = typer.Option(None, help="Kubeflow Pipelines, such as http://localhost:8080; default: $KF_PIPELINES_ENDPOINT.")
_NAMESPACE = typer.Option(None, help="Namespace of a multi-user Kubeflow.")
_PIPELINE = typer.Option("train", help="Which pipeline: train, score; or a compiled file.")
_EXPERIMENT = typer.Option("pneumonia", "--experiment", "-e", help="Kubeflow's experiment, which groups runs.")
_IMAGE = typer.Option(None, help="Step image as the cluster finds it; default: as compiled.")
_CUDA_IMAGE = typer.Option(None, help="Step image with CUDA as the cluster finds it; default: as compiled.")
_ON_NODES = typer.Option(False, "--images-on-nodes", help="The nodes have the images, though no registry is named.")
_WAIT = typer.Option(False, "--wait", help="Follow the run to its end, with its steps on stderr; exits as status does.")
_TIMEOUT = typer.Option(None, "--timeout", help="With --wait: seconds after which a run that goes on is left alone.")
_RUN_HOURS = typer.Option(None, "--run-hours", help="Most time of a run, after which Kubeflow ends it; default: 96.")
_PARAMETERS = typer.Argument(None, metavar="[NAME=VALUE]...", help="The pipeline's parameters, such as gpus=1.")


def add_to(group: typer.Typer) -> None:
    """Add the commands of this module to `pneumoctl pipeline`."""
    group.command("compile")(compile_)
    for command in (submit, schedule, status, logs):
        group.command(command.__name__)(command)


def compile_(
    pipeline: str = typer.Argument("train", help="Which pipeline: train, score."),
    parameters: list[str] | None = typer.Argument(
        None, metavar="[NAME=CLAIM]...", help="Volumes to mount: data_volume=, training_volume=, release_volume=."
    ),
    output: Path = typer.Option(..., "--output", "-o", help="File to write, such as train.yaml."),
    image: str | None = _IMAGE,
    cuda_image: str | None = _CUDA_IMAGE,
    run_hours: float | None = _RUN_HOURS,
) -> None:
    """Write a compiled pipeline, with step images of your registry and your volumes, to give to Kubeflow otherwise."""
    from pneumonia.errors import UsageError
    from pneumonia.pipelines.checks import VOLUMES
    from pneumonia.pipelines.package import adapt, check_arguments, compile_pipeline
    from pneumonia.pipelines.run import compiled_pipeline

    arguments = check_arguments(compiled_pipeline(pipeline), _parsed(parameters))
    if others := sorted(arguments.keys() - VOLUMES.keys()):
        raise UsageError(f"{', '.join(others)}: not a volume; give it when the file is submitted")
    package = compile_pipeline(pipeline, output, image=image, cuda_image=cuda_image)
    print(json.dumps({"pipeline": str(adapt(package, arguments, output, run_hours))}))


@contextmanager
def _package(
    pipeline: str,
    image: str | None,
    cuda_image: str | None,
    parameters: list[str] | None,
    on_nodes: bool,
    hours: float | None,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The compiled file to submit, with its volumes, and the checked arguments of its run."""
    import tempfile

    from pneumonia.pipelines.package import adapt, check_arguments, check_submission, compile_pipeline

    with tempfile.TemporaryDirectory(prefix="pneumonia-pipeline.") as folder:
        package = Path(pipeline)
        if not pipeline.endswith((".yaml", ".yml")):
            compiled = Path(folder) / f"{pipeline}.yaml"
            package = compile_pipeline(pipeline, compiled, image=image, cuda_image=cuda_image)
        arguments = check_arguments(package, _parsed(parameters))
        check_submission(package, arguments, images_on_nodes=on_nodes)
        yield adapt(package, arguments, Path(folder) / f"own-{package.stem}.yaml", hours), arguments


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
    images_on_nodes: bool = _ON_NODES,
    run_hours: float | None = _RUN_HOURS,
    wait: bool = _WAIT,
    timeout: float | None = _TIMEOUT,
    host: str | None = _HOST,
    namespace: str | None = _NAMESPACE,
) -> None:
    """Start a run on Kubeflow; prints its id as JSON, with --wait what became of it."""
    from pneumonia.pipelines.cluster import Kubeflow

    with _package(pipeline, image, cuda_image, parameters, images_on_nodes, run_hours) as (package, arguments):
        kubeflow = Kubeflow(host, namespace)
        run_id = kubeflow.submit(package, arguments, experiment, name)
    if wait:
        _show(kubeflow.wait(run_id, timeout))
    else:
        print(json.dumps({"run_id": run_id}))


def schedule(
    parameters: list[str] | None = _PARAMETERS,
    cron: str = typer.Option(..., help="When: six fields, seconds first, such as '0 0 3 * * *' for three at night."),
    name: str = typer.Option("pneumonia", help="Name of the schedule."),
    pipeline: str = _PIPELINE,
    experiment: str = _EXPERIMENT,
    image: str | None = _IMAGE,
    cuda_image: str | None = _CUDA_IMAGE,
    images_on_nodes: bool = _ON_NODES,
    run_hours: float | None = _RUN_HOURS,
    host: str | None = _HOST,
    namespace: str | None = _NAMESPACE,
) -> None:
    """Start a run on Kubeflow again and again, one at a time; prints the schedule's id as JSON."""
    from pneumonia.pipelines.cluster import Kubeflow

    with _package(pipeline, image, cuda_image, parameters, images_on_nodes, run_hours) as (package, arguments):
        made = Kubeflow(host, namespace).schedule(package, arguments, experiment, name, cron)
    print(json.dumps({"schedule_id": made}))


def status(
    run_id: str = typer.Argument(..., help="Id that submit printed."),
    wait: bool = _WAIT,
    timeout: float | None = _TIMEOUT,
    host: str | None = _HOST,
    namespace: str | None = _NAMESPACE,
) -> None:
    """Show a run and its steps as JSON, and last on stderr why it failed or what it waits for.

    Exits 0 where it succeeded, 1 where it failed, 130 where somebody terminated it, 10 while it goes on.
    """
    from pneumonia.pipelines.cluster import Kubeflow

    kubeflow = Kubeflow(host, namespace)
    _show(kubeflow.wait(run_id, timeout) if wait else kubeflow.run(run_id))


def _show(run: Run) -> None:
    """The run on stdout, its reason on stderr, its state as the exit code."""
    from dataclasses import asdict

    from pneumonia.pipelines.cluster import ENDED, TERMINATED

    print(json.dumps(asdict(run), indent=2))
    if run.state in ("SUCCEEDED", "SKIPPED"):
        return
    kind = "error" if run.state in ENDED else "pipeline"
    print(f"{kind}: {run.reason or f'run {run.run_id} is {run.state.lower()}'}", file=sys.stderr)
    ended = TERMINATED_EXIT if run.state == TERMINATED else 1
    raise typer.Exit(ended if run.state in ENDED else RUNNING_EXIT)


def logs(
    run_id: str = typer.Argument(..., help="Id that submit printed."),
    step: str | None = typer.Argument(None, help="Step; default: that which failed, else the last that began."),
    everything: bool = typer.Option(False, "--all", help="With the lines of Kubeflow's launcher around the step's."),
    host: str | None = _HOST,
    namespace: str | None = _NAMESPACE,
) -> None:
    """Print what a step of a run has written."""
    from pneumonia.pipelines.cluster import Kubeflow, find_step
    from pneumonia.pipelines.nodes import own_lines

    kubeflow = Kubeflow(host, namespace)
    log = kubeflow.log(run_id, find_step(kubeflow.run(run_id), step))
    for line in log.splitlines() if everything else own_lines(log):
        print(line)
