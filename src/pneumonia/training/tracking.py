"""Where a run's parameters and figures go: MLflow, or nowhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pneumonia.config.schema import Config
from pneumonia.errors import ServerUnavailable

CONNECT_TIMEOUT_S = 5.0


class Tracker(Protocol):
    """Takes figures; knows nothing of what they mean."""

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        """Record named figures, at an optimiser step where one is given."""
        ...


class NoTracker:
    """Records nothing, for tracking.uri=null."""

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        """Drop the figures."""


class MlflowTracker:
    """Records into the active MLflow run."""

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        """Record into the active run."""
        import mlflow

        mlflow.log_metrics({name: float(value) for name, value in figures.items()}, step=step)


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
    """An open MLflow run that has the configuration as its parameters, or a NoTracker for tracking.uri=null.

    Raises ServerUnavailable where a tracking server does not answer.
    """
    if config.tracking.uri is None:
        yield NoTracker()
        return
    _check_reachable(config.tracking.uri)
    # These switch off what MLflow would ask of the network or of git on its own.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    local = config.tracking.uri == "local"
    home = Path(config.output_dir).resolve()
    if local:
        home.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}" if local else config.tracking.uri)
    if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
        location = (home / "mlartifacts").as_uri() if local else None
        mlflow.create_experiment(config.tracking.experiment, artifact_location=location)
    mlflow.set_experiment(config.tracking.experiment)
    with mlflow.start_run(run_name=run_name, tags=dict(tags)):
        mlflow.log_params({key: str(value)[:500] for key, value in flatten(config.to_json()).items()})
        yield MlflowTracker()
