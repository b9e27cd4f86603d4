"""Where a run's parameters and figures go: MLflow, or nowhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pneumonia import contract
from pneumonia.config.schema import Config
from pneumonia.errors import ServerUnavailable

CONNECT_TIMEOUT_S = 5.0
BUNDLE_TAG = "bundle_digest"
"""The tag by which evaluation and export find the run that trained a bundle."""


class Tracker(Protocol):
    """Takes figures and files; knows nothing of what they mean."""

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        """Record named figures, at an optimiser step where one is given."""
        ...

    def keep(self, path: Path, under: str | None = None) -> None:
        """Copy a file, or everything in a folder, into the run's artifacts, in the folder `under` of them."""
        ...

    def tag(self, name: str, value: str) -> None:
        """Mark the run, so that it is found again."""
        ...


class NoTracker:
    """Records nothing, for tracking.uri=null."""

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        """Drop the figures."""

    def keep(self, path: Path, under: str | None = None) -> None:
        """Drop the file."""

    def tag(self, name: str, value: str) -> None:
        """Drop the tag."""


class MlflowTracker:
    """Records into the active MLflow run."""

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        """Record into the active run."""
        import mlflow

        mlflow.log_metrics({name: float(value) for name, value in figures.items()}, step=step)

    def keep(self, path: Path, under: str | None = None) -> None:
        """Copy into the active run's artifacts."""
        import mlflow

        (mlflow.log_artifacts if path.is_dir() else mlflow.log_artifact)(str(path), under)

    def tag(self, name: str, value: str) -> None:
        """Mark the active run."""
        import mlflow

        mlflow.set_tag(name, value)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item})
    return flat


def _check_reachable(uri: str) -> None:
    """Notice a server that is down before hours of training, not after."""
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ServerUnavailable(
            f"tracking.uri={uri}: no answer ({error}); start it with `mlflow server`, keep the records in a local "
            "file with tracking.uri=local, or switch tracking off with tracking.uri=null"
        ) from error


@contextlib.contextmanager
def track(config: Config, run_name: str, tags: Mapping[str, str]) -> Iterator[Tracker]:
    """A new MLflow run that has the configuration as its parameters, or a NoTracker for tracking.uri=null.

    Raises ServerUnavailable where a tracking server does not answer.
    """
    if config.tracking.uri is None:
        yield NoTracker()
        return
    mlflow = connect(config)
    with mlflow.start_run(run_name=run_name, tags=dict(tags)):
        mlflow.log_params({key: str(value)[:500] for key, value in flatten(config.to_json()).items()})
        yield MlflowTracker()


@contextlib.contextmanager
def track_again(config: Config, run_name: str, bundle_digest: str) -> Iterator[Tracker]:
    """The run that wrote the bundle of this digest, opened again; a new one where this tracker knows none.

    The run is found by its tag and not by an identifier inside the bundle: two trainings that give the same weights
    give the same bundle. Raises as `track`.
    """
    if config.tracking.uri is None:
        yield NoTracker()
        return
    mlflow = connect(config)
    found = mlflow.search_runs(
        filter_string=f"tags.{BUNDLE_TAG} = '{bundle_digest}'", max_results=1, output_format="list"
    )
    again = {"run_id": found[0].info.run_id} if found else {"run_name": run_name, "tags": {BUNDLE_TAG: bundle_digest}}
    with mlflow.start_run(**again):
        yield MlflowTracker()


def connect(config: Config) -> Any:
    """MLflow, pointed at the configured server or file and at its experiment."""
    uri = str(config.tracking.uri)
    _check_reachable(uri)
    # These switch off what MLflow would ask of the network or of git on its own.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    local = uri == "local"
    # A pipeline's steps run in folders of their own, so the engine names one place for all of them.
    home = Path(os.environ.get(contract.TRACKING_DIR_ENV) or config.output_dir).resolve()
    if local:
        home.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}" if local else uri)
    if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
        location = (home / "mlartifacts").as_uri() if local else None
        mlflow.create_experiment(config.tracking.experiment, artifact_location=location)
    mlflow.set_experiment(config.tracking.experiment)
    return mlflow
