"""`pneumoctl pipeline run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

_OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="Configuration, such as training.num_train_epochs=5.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module, and those for a cluster."""
    from pneumonia.cli import cluster

    group = typer.Typer(no_args_is_help=True, help="Run the compiled pipeline, the same graph that a cluster gets.")
    group.command("run")(run)
    cluster.add_to(group)
    app.add_typer(group, name="pipeline")


def run(
    overrides: list[str] | None = _OVERRIDES,
    engine: str = typer.Option(
        "subprocess", help="What runs the steps: subprocess, or docker with the image of `make images`."
    ),
    data: Path | None = typer.Option(None, help="Folder of X-rays; without it, phantoms are drawn."),
    experiment: str | None = typer.Option(None, help="Experiment, such as smoke or vit_base. Default: local."),
    output: Path = typer.Option(Path("models"), help="Folder of the final bundle."),
    release_root: Path = typer.Option(Path(), help="Folder that gets releases/<digest>."),
    runs: Path = typer.Option(Path("pipeline_runs"), help="Folder that gets one folder a run."),
    baseline: bool = typer.Option(False, "--baseline", help="Fit a logistic regression too, to compare with."),
    tensorrt: bool = typer.Option(False, "--tensorrt", help="Add a TensorRT engine to the bundle; needs a GPU."),
    cache: bool = typer.Option(False, "--cache", help="Reuse an earlier run's outputs where inputs are equal."),
) -> None:
    """Fetch, prepare, train, evaluate, pass the gate, export and publish, each step a process of its own.

    Progress goes to stderr, everything to RUNS/<time>/pipeline.log, and the paths of bundle, report and release to
    stdout as JSON. Exits as the failing step did: 5 where the gate refused.
    """
    from pneumonia.pipelines.run import run_pipeline

    arguments = pipeline_arguments(overrides or [], data=data, experiment=experiment)
    arguments |= {"release_root": str(release_root.resolve()), "baseline": baseline, "tensorrt": tensorrt}
    done = run_pipeline(arguments, runs=runs, output=output, engine=engine, cache=cache)
    metrics = done.metrics()
    result = {
        "bundle": str(done.bundle.path.resolve()),
        "model_id": done.bundle.model_id,
        "release": str(done.release),
        "report": str(done.report),
        "evaluation": str(done.evaluation),
        "run": str(done.path),
        "log": str(done.log),
        "synthetic": metrics["synthetic"],
        "threshold": metrics["threshold"],
        "metrics": {name: figure["value"] for name, figure in metrics["test"].items()},
        "seconds": dict(done.seconds),
    }
    print(json.dumps(result, indent=2))


def pipeline_arguments(overrides: list[str], *, data: Path | None, experiment: str | None) -> dict[str, Any]:
    """Options and overrides as the pipeline's parameters, composed once here so that a typo shows at once.

    `experiment=`, `data=` and `data.root=` among the overrides mean the same as the options. Raises ConfigError, and
    UsageError where option and override disagree.
    """
    from pneumonia.config.compose import compose
    from pneumonia.errors import UsageError
    from pneumonia.pipelines.settings import PARAMETERS, overrides_of

    given = dict(override.partition("=")[::2] for override in overrides)
    for option, key in ((data, "data"), (data, "data.root"), (experiment, "experiment")):
        if option is not None and key in given:
            raise UsageError(f"{key}={given[key]}: also given as an option ({option}); give it once")
    root = data if data is not None else given.get("data.root")
    arguments: dict[str, Any] = {
        "experiment": experiment or given.get("experiment", "local"),
        "source": given.get("data", "folder" if root else "phantom"),
        # A step does not run where this command does.
        "data_root": str(Path(root).expanduser().resolve()) if root else "",
        "overrides": [item for item in overrides if item.partition("=")[0] not in PARAMETERS],
    }
    arguments["tracking_uri"] = given.get("tracking.uri", "")
    compose(overrides_of(**arguments))
    # This machine has no KServe to deploy to.
    return {**arguments, "deploy": False}
