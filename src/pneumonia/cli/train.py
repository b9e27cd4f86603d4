"""`pneumoctl train`, `evaluate`, `gate` and `export`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pneumonia.bundle import Bundle
    from pneumonia.config.schema import Config

_OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="Configuration, such as training.num_train_epochs=5.")
_PREPARED = typer.Option(None, help="Prepared data set; default: data.prepared_dir of the configuration.")
_BUNDLE = typer.Option(..., help="Bundle that `pneumoctl train` wrote.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("train")(train)
    app.command("evaluate")(evaluate)
    app.command("baseline")(baseline)
    app.command("calibrate")(calibrate)
    app.command("gate")(gate)
    app.command("export")(export)


def _prepared(config: Config, given: Path | None) -> Path:
    """The prepared data set, made first where a source is configured."""
    from pneumonia.data.prepare import prepare
    from pneumonia.data.sources import fetch

    if given is not None:
        return given
    if config.data.source is not None:
        fetched = fetch(config.data, Path(config.data.raw_dir))
        return prepare(config, fetched, Path(config.data.prepared_dir)).path
    return Path(config.data.prepared_dir)


def train(
    overrides: list[str] | None = _OVERRIDES,
    prepared: Path | None = _PREPARED,
    multirun: bool = typer.Option(False, "--multirun", "-m", help="Train once for every combination of a,b values."),
) -> None:
    """Train a model and write its bundle, with temperature and threshold chosen on validation.

    The bundle goes to OUTPUT_DIR/<name>/bundle; test images are not looked at. Prints one JSON line a run.
    """
    from pneumonia.config.compose import compose, sweep
    from pneumonia.errors import UsageError
    from pneumonia.training.model import require_checkpoint
    from pneumonia.training.processes import is_main, world_size

    if world_size() > 1 and prepared is None:
        raise UsageError("torchrun without --prepared: give the folder that `pneumoctl data prepare` wrote")
    runs = sweep(overrides or []) if multirun else [list(overrides or [])]
    # Compose all before training any: a typo in the last run shows now, not in hours.
    configs = [compose(run) for run in runs]
    # And a model that is nowhere before anything is downloaded or prepared.
    for config in configs:
        require_checkpoint(config.model)
    for number, (run, config) in enumerate(zip(runs, configs, strict=True)):
        if multirun:
            print(f"run {number + 1} of {len(runs)}: {' '.join(run)}", file=sys.stderr)
        from pneumonia.training.train import train as train_bundle

        name = f"{config.model.name}-{number}" if multirun else config.model.name
        bundle = train_bundle(config, _prepared(config, prepared), Path(config.output_dir) / name / "bundle")
        validation = {key: item["value"] for key, item in bundle.manifest.metrics["val"].items()}
        if is_main():
            print(json.dumps({"bundle": str(bundle.path), "overrides": run, "validation": validation}), flush=True)


def evaluate(
    overrides: list[str] | None = _OVERRIDES,
    bundle: Path = _BUNDLE,
    prepared: Path | None = _PREPARED,
    output: Path = typer.Option(Path("runs/evaluation"), help="Folder for metrics.json, predictions.csv, report.html."),
) -> None:
    """Score the test split and write metrics and report. Do it once for a finished model."""
    from pneumonia.config.compose import compose
    from pneumonia.evaluation.evaluate import evaluate as run_evaluation

    config = compose(overrides or [])
    metrics = run_evaluation(config, bundle, _prepared(config, prepared), output)
    print(json.dumps({"output": str(output), "test": {key: item["value"] for key, item in metrics["test"].items()}}))


def baseline(
    overrides: list[str] | None = _OVERRIDES,
    prepared: Path | None = _PREPARED,
    output: Path = typer.Option(Path("runs/baseline.json"), help="Where the figures go."),
) -> None:
    """Fit a logistic regression on fixed features and score it on the test split, to compare with."""
    from pneumonia.config.compose import compose
    from pneumonia.training.baseline import require_network, train_baseline

    config = compose(overrides or [])
    require_network(config.model)
    result = train_baseline(config, _prepared(config, prepared), output)
    figures = {name: item["value"] for name, item in result["test"].items()}
    print(json.dumps({"output": str(output), "features": result["features"], "test": figures}))


def calibrate(
    bundle: Path = typer.Argument(..., help="Bundle to calibrate; it is left as it is."),
    data: Path | None = typer.Argument(None, help="Folder of labelled images, as for data=folder."),
    overrides: list[str] | None = _OVERRIDES,
    prevalence: float | None = typer.Option(
        None, help="Share of pneumonia where the model will be used; alone, or where DATA has another share."
    ),
    output: Path = typer.Option(Path("models-calibrated"), help="Folder of the new bundle."),
) -> None:
    """Fit temperature, offset and threshold to a site's own labelled images, or to its share of pneumonia."""
    import tempfile

    from pneumonia.config.compose import compose
    from pneumonia.errors import UsageError
    from pneumonia.export.calibrate import calibrate as run_calibration
    from pneumonia.export.calibrate import for_prevalence

    if prevalence is not None and not 0 < prevalence < 1:
        raise UsageError(f"--prevalence {prevalence:g}: expected a share above 0 and below 1, such as 0.1")
    if data is None or (prevalence is not None and "=" in str(data)):
        # Without a folder the first override stands in its place.
        overrides = [*([str(data)] if data is not None else []), *(overrides or [])]
        if prevalence is None:
            raise UsageError("nothing to calibrate with; give a folder of labelled images, or --prevalence SHARE")
        _show_point(for_prevalence(bundle, prevalence, compose(overrides).evaluation.max_threshold, output))
        return
    with tempfile.TemporaryDirectory(prefix="pneumonia-calibrate.") as scratch:
        places = [f"data.raw_dir={scratch}/raw", f"data.prepared_dir={scratch}/prepared"]
        config = compose(["data=folder", f"data.root={data}", *places, *(overrides or [])])
        new = run_calibration(config, bundle, _prepared(config, None), output, prevalence)
    _show_point(new)


def _show_point(new: Bundle) -> None:
    from dataclasses import asdict

    print(json.dumps({"bundle": str(new.path), "model_id": new.model_id, **asdict(new.manifest.point)}))


def gate(
    overrides: list[str] | None = _OVERRIDES,
    evaluation: Path = typer.Option(Path("runs/evaluation"), help="Folder that `pneumoctl evaluate` wrote."),
) -> None:
    """Exit 5, with every reason, where the test figures are below those of the configuration."""
    from pneumonia.config.compose import compose
    from pneumonia.evaluation.evaluate import gate as run_gate

    print(json.dumps(run_gate(compose(overrides or []), evaluation)))


def export(
    overrides: list[str] | None = _OVERRIDES,
    bundle: Path = _BUNDLE,
    evaluation: Path = typer.Option(Path("runs/evaluation"), help="Folder that `pneumoctl evaluate` wrote."),
    prepared: Path | None = _PREPARED,
    output: Path = typer.Option(Path("models"), help="Folder of the final bundle."),
    fp16: bool = typer.Option(False, "--fp16", help="Add model.fp16.onnx, from which TensorRT builds engines."),
    tensorrt: bool = typer.Option(False, "--tensorrt", help="Add that and an engine for this machine's GPU."),
    timing_cache: Path | None = typer.Option(None, help="TensorRT's measurements, to spare the next build them."),
) -> None:
    """Check the gate, export ONNX and, with export.int8=true, int8; prove parity and write the final bundle."""
    from pneumonia.bundle import open_bundle
    from pneumonia.config.compose import compose
    from pneumonia.evaluation.evaluate import gate as run_gate
    from pneumonia.evaluation.evaluate import read_metrics_of
    from pneumonia.export.to_int8 import export_int8
    from pneumonia.export.to_onnx import export_onnx

    config = compose(overrides or [])
    # Whose figures they are comes before whether they are good enough; the files are verified by the export.
    read_metrics_of(open_bundle(bundle, verify=False), evaluation)
    run_gate(config, evaluation)
    data = _prepared(config, prepared)
    final = export_onnx(config, bundle, evaluation, data, output)
    if config.export.int8:
        final = export_int8(config, output, data, output)
    final = _for_gpus(config, final, data, fp16, tensorrt, timing_cache)
    print(json.dumps({"bundle": str(final.path), "model_id": final.model_id}))


def _for_gpus(
    config: Config, bundle: Bundle, prepared: Path, fp16: bool, tensorrt: bool, timing_cache: Path | None
) -> Bundle:
    """The bundle in its place, with the forms for GPUs that were asked for."""
    from pneumonia.export.build_engine import add_fp16_graph, build_engine

    if tensorrt:
        return build_engine(config, bundle.path, prepared, bundle.path, timing_cache)
    return add_fp16_graph(bundle, prepared, bundle.path) if fp16 else bundle
