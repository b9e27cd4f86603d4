"""Where a run's parameters and figures go: MLflow, or nowhere."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pneumonia import contract
from pneumonia.config.schema import Config
from pneumonia.errors import DependencyMissing, ServerUnavailable

CONNECT_TIMEOUT_S = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_ENVIRONMENT = {
    # What MLflow would ask of the network or of git on its own is switched off.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # By its defaults MLflow waits for a server that is gone for up to 16 minutes, at every figure.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Set where the user has not set them."""
BUNDLE_TAG = "bundle_digest"
"""The tag by which evaluation and export find the run that trained a bundle."""
RUN_TAG, POD_TAG = "kubeflow.run", "kubeflow.pod"
"""The way from an MLflow run back to Kubeflow's: its id, and the pod of the training."""


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
    """Records into the active MLflow run. Once it cannot, it says so and the work goes on: its results are in files."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.lost = False

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        """Record into the active run."""
        import mlflow

        values = {name: float(value) for name, value in figures.items()}
        self._attempt(lambda: mlflow.log_metrics(values, step=step))

    def keep(self, path: Path, under: str | None = None) -> None:
        """Copy into the active run's artifacts."""
        import mlflow

        self._attempt(lambda: (mlflow.log_artifacts if path.is_dir() else mlflow.log_artifact)(str(path), under))

    def tag(self, name: str, value: str) -> None:
        """Mark the active run."""
        import mlflow

        self._attempt(lambda: mlflow.set_tag(name, value))

    def end(self, status: str) -> None:
        """Close the active run."""
        import mlflow

        # Even where nobody answers, so that this process may open another.
        self._attempt(lambda: mlflow.end_run(status), look_first=False)

    def _attempt(self, record: Callable[[], object], look_first: bool = True) -> None:
        # Besides its own errors MLflow lets through whatever its database driver and its artifact store raise.
        try:
            if self.lost and look_first:  # It may be back, but finding out must not take long each time.
                require_reachable(self.uri)
            record()
        except Exception as error:
            if not self.lost:
                print(f"warning: tracking.uri={shown(self.uri)} takes no more records ({_one_line(error)}); going on "
                      "without, figures and files are in this run's folder", file=sys.stderr, flush=True)  # fmt: skip
            self.lost = True


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item})
    return flat


def shown(uri: str) -> str:
    """The address without the password that it may hold."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def _one_line(error: BaseException) -> str:
    return shown(" ".join((str(error) or type(error).__name__).split()))[:300]


def _kubeflow() -> dict[str, str]:
    known = {RUN_TAG: contract.KUBEFLOW_RUN_ENV, POD_TAG: "KFP_POD_NAME"}
    return {tag: os.environ[name] for tag, name in known.items() if os.environ.get(name)}


def require_reachable(uri: str) -> None:
    """Notice a server that is down before hours of training, not after."""
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(uri)
    try:
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        if port is not None and parts.hostname:
            socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:  # ValueError: no such port, no such name
        raise _unavailable(uri, f"no answer ({error}); start it with `mlflow server`") from error


def _unavailable(uri: str, why: str) -> ServerUnavailable:
    local = "" if uri == "local" else "keep the records in a local file with tracking.uri=local, or "
    return ServerUnavailable(f"tracking.uri={shown(uri)}: {why}, {local}switch tracking off with tracking.uri=null")


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Whatever MLflow raises while it is set up, as errors that say what to do."""
    import mlflow.exceptions
    import sqlalchemy.exc

    try:
        yield
    except ModuleNotFoundError as error:
        raise DependencyMissing(f"tracking.uri={shown(uri)} needs the Python package {error.name}") from error
    except (mlflow.exceptions.MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        place = "give another output_dir" if uri == "local" else "give the address of an MLflow server or database"
        raise _unavailable(uri, f"MLflow cannot use it ({_one_line(error)}); {place}") from error


@contextlib.contextmanager
def track(config: Config, run_name: str, tags: Mapping[str, str]) -> Iterator[Tracker]:
    """A new MLflow run that has the configuration as its parameters, or a NoTracker for tracking.uri=null.

    A server that is lost later is said once on stderr and costs no result. Raises ServerUnavailable where a tracking
    server does not answer at the start.
    """
    if config.tracking.uri is None:
        yield NoTracker()
        return
    uri, mlflow = config.tracking.uri, connect(config)
    with _explained(uri):
        run = mlflow.start_run(run_name=run_name, tags={**tags, **_kubeflow()})
    print(f"tracking: MLflow run {run.info.run_id} in {shown(uri)}", file=sys.stderr, flush=True)
    with _recording(uri) as tracker:
        with _explained(uri):
            settings = {**flatten(config.to_json()), "tracking.uri": shown(uri)}
            mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})
        yield tracker


@contextlib.contextmanager
def track_again(config: Config, run_name: str, bundle_digest: str) -> Iterator[Tracker]:
    """The run that wrote the bundle of this digest, opened again; a new one where this tracker knows none.

    The run is found by its tag and not by an identifier inside the bundle: two trainings that give the same weights
    give the same bundle. Raises as `track`.
    """
    if config.tracking.uri is None:
        yield NoTracker()
        return
    uri, mlflow = config.tracking.uri, connect(config)
    with _explained(uri):
        found = mlflow.search_runs(
            filter_string=f"tags.{BUNDLE_TAG} = '{bundle_digest}'", max_results=1, output_format="list"
        )
        new = {"run_name": run_name, "tags": {BUNDLE_TAG: bundle_digest}}
        mlflow.start_run(**({"run_id": found[0].info.run_id} if found else new))
    with _recording(uri) as tracker:
        yield tracker


@contextlib.contextmanager
def _recording(uri: str) -> Iterator[MlflowTracker]:
    """The active run, closed at the end as what it became."""
    tracker = MlflowTracker(uri)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    finally:
        tracker.end(status)


def connect(config: Config) -> Any:
    """MLflow, pointed at the configured server or file and at its experiment. Raises as `track`."""
    uri = str(config.tracking.uri)
    require_reachable(uri)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    local = uri == "local"
    # A pipeline's steps run in folders of their own, so the engine names one place for all of them.
    home = Path(os.environ.get(contract.TRACKING_DIR_ENV) or config.output_dir).resolve()
    if local:
        home.mkdir(parents=True, exist_ok=True)
    with _explained(uri):
        mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}" if local else uri)
        if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
            location = (home / "mlartifacts").as_uri() if local else None
            mlflow.create_experiment(config.tracking.experiment, artifact_location=location)
        mlflow.set_experiment(config.tracking.experiment)
    return mlflow
