"""Releases in MLflow's model registry: alias `candidate` when published, `champion` when served."""

from __future__ import annotations

from typing import Any

from pneumonia.config.schema import Config, TrackingConfig
from pneumonia.errors import MissingPrerequisite
from pneumonia.release_manifest import release_name_of

CANDIDATE = "candidate"
CHAMPION = "champion"
_RELEASE_TAG = "release"
_URI_TAG = "release_uri"
_RUN_TAGS = ("exported_bundle_digest", "bundle_digest")


def set_alias(
    tracking_uri: str | None, model: str, release_uri: str, alias: str, bundle_digest: str | None = None
) -> str | None:
    """Point `alias` of the registered model at the release, registering it first where it is not; the version's number.

    tracking_uri: as tracking.uri, `local` or a server; None does nothing and returns None. model: name in the registry.
    bundle_digest: links a new version with the run that made the bundle.
    Raises ServerUnavailable where the server does not answer, MissingPrerequisite where it refuses.
    """
    if tracking_uri is None:
        return None
    client = _client(tracking_uri, model)
    from mlflow.exceptions import MlflowException

    release = release_name_of(release_uri)
    try:
        version = _version(client, model, release) or _register(client, tracking_uri, model, release_uri, bundle_digest)
        client.set_registered_model_alias(model, alias, version)
    except MlflowException as error:
        raise MissingPrerequisite(
            f"{tracking_uri}: the model registry refuses {release_uri} ({error.message}); a server that runs elsewhere "
            "takes s3:// or pvc:// releases, not a folder of this machine"
        ) from error
    return str(version)


def aliased(tracking_uri: str | None, model: str) -> dict[str, str]:
    """Aliases of the registered model: alias -> release name."""
    if tracking_uri is None:
        return {}
    client = _client(tracking_uri, model)
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise MissingPrerequisite(f"{tracking_uri}: the model registry does not answer ({error.message})") from error
    return {
        alias: client.get_model_version(model, version).tags.get(_RELEASE_TAG, "")
        for alias, version in found.aliases.items()
    }


def _client(tracking_uri: str, model: str) -> Any:
    from pneumonia.training.tracking import connect

    mlflow = connect(Config(tracking=TrackingConfig(uri=tracking_uri, experiment=model)))
    return mlflow.MlflowClient()


def _version(client: Any, model: str, release: str) -> str | None:
    found = client.search_model_versions(f"name = '{model}' and tags.{_RELEASE_TAG} = '{release}'")
    return min((version.version for version in found), key=int, default=None)


def _register(client: Any, tracking_uri: str, model: str, release_uri: str, bundle_digest: str | None) -> str:
    """A new version, linked with the run that made the bundle where this tracker knows it."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment = client.get_experiment_by_name(model)
    runs: list[Any] = []
    for tag in _RUN_TAGS:
        if bundle_digest and not runs:
            runs = client.search_runs([experiment.experiment_id], f"tags.{tag} = '{bundle_digest}'", max_results=1)
    run = runs[0].info.run_id if runs else None
    # A server refuses paths of machines that it cannot see; the run's own copy of the bundle it knows.
    remote = tracking_uri.startswith("http") and "://" not in release_uri and run is not None
    tags = {_RELEASE_TAG: release_name_of(release_uri), _URI_TAG: release_uri}
    made = client.create_model_version(model, f"runs:/{run}/bundle" if remote else release_uri, run, tags=tags)
    return str(made.version)
