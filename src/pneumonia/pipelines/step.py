"""What pipeline steps share: their settings, a way to say why they failed, and steps of more than one call."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pneumonia import __version__, contract
from pneumonia.bundle import open_bundle
from pneumonia.errors import ConfigError, DependencyMissing, PneumoniaError, UsageError
from pneumonia.files import write_json

ERROR_DIR_ENV = "PNEUMONIA_STEP_ERRORS"
"""Folder for <step>.json with the reason and exit code of a failed step; kfp.local itself keeps neither."""


@contextlib.contextmanager
def step(name: str, library_version: str) -> Iterator[None]:
    """Run a step's body: the library's errors become one line on stderr and their exit code.

    Anything else keeps its traceback. Where PNEUMONIA_STEP_ERRORS is set, reason and exit code are left there too.
    Raises SystemExit with the exit code of a PneumoniaError, 4 for a missing package, 130 for an interrupt.
    """
    try:
        if library_version != __version__:
            raise UsageError(
                f"the pipeline asks for pneumonia {library_version}, this step has {__version__}; compile the pipeline "
                "again, or use the step image of its version"
            )
        yield
    except PneumoniaError as error:
        _fail(name, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "pneumonia").partition(".")[0] == "pneumonia":
            _record(name, f"{type(error).__name__}: {error}", 1)
            raise
        missing = DependencyMissing(f"{error.name} is not installed; pip install 'pneumonia[train,pipelines,serve]'")
        _fail(name, str(missing), missing.exit_code)
    except KeyboardInterrupt:
        _fail(name, "interrupted", 130)
    except Exception as error:
        _record(name, f"{type(error).__name__}: {error}", 1)
        raise


def _record(name: str, reason: str, exit_code: int) -> None:
    if folder := os.environ.get(ERROR_DIR_ENV):
        write_json(Path(folder) / f"{name}.json", {"step": name, "reason": reason, "exit_code": exit_code})


def _fail(name: str, reason: str, exit_code: int) -> None:
    _record(name, reason, exit_code)
    print(f"error: {reason}", file=sys.stderr, flush=True)
    sys.exit(exit_code)


REGISTERED_MODEL = "pneumonia"
"""Name in MLflow's model registry."""
PARAMETERS = {
    "experiment": "experiment",
    "data": "source",
    "data.root": "data_root",
    "evaluation.recall_target": "recall_target",
    **{f"gate.{name}": f"gate_{name}" for name in ("accuracy", "precision", "recall", "f1", "recall_low")},
    "tracking.uri": "tracking_uri",
}
"""Configuration keys that have a pipeline parameter of their own, with its name."""


def settings_of(
    experiment: str, source: str, data_root: str, overrides: Sequence[str], **parameters: float | str
) -> list[str]:
    """The pipeline's parameters as configuration overrides.

    parameters: others of PARAMETERS by name, and num_nodes and gpus. Raises ConfigError where `overrides` sets what has
    a parameter of its own, UsageError for nodes and GPUs that make no sense.
    """
    for override in overrides:
        if parameter := PARAMETERS.get(override.partition("=")[0]):
            raise ConfigError(f"{override}: set the pipeline's parameter {parameter} instead")
    num_nodes, gpus = int(parameters.get("num_nodes", 1)), int(parameters.get("gpus", 0))
    if num_nodes < 1 or gpus < 0 or (num_nodes > 1 and gpus == 0):
        raise UsageError(
            f"num_nodes={num_nodes}, gpus={gpus}: expected num_nodes from 1 and gpus from 0 up, and gpus of each node "
            "where there are several nodes"
        )
    root = [f"data.root={data_root}"] if data_root else []
    named = [f"{key}={parameters[name]}" for key, name in PARAMETERS.items() if name in parameters]
    return [f"experiment={experiment}", f"data={source}", *root, *named, *overrides]


AUTO = "auto"
"""Backend of a release: tensorrt where the bundle has an engine, python elsewhere."""
_UNREADABLE = (
    "a folder of one step, which no server of the cluster can read; run the pipeline with "
    "release_root=s3://<bucket>/<path> or release_volume=<PersistentVolumeClaim>, or with deploy=false"
)


def check_release(backend: str, tensorrt: bool, deploy: bool, release_root: str, release_volume: str) -> None:
    """Refuse parameters of the pipeline by which publish or deploy would fail, hours later.

    Raises UsageError naming the parameter.
    """
    from pneumonia.triton.repository import BACKENDS

    if backend not in (AUTO, *BACKENDS):
        raise UsageError(f"backend={backend}: not one of {', '.join((AUTO, *BACKENDS))}")
    if backend == "tensorrt" and not tensorrt:
        raise UsageError("backend=tensorrt: serves an engine, which only tensorrt=true builds; set it, or backend=auto")
    if deploy and not release_volume and "://" not in release_root:
        raise UsageError(f"release_root={release_root}: {_UNREADABLE}")


def fetch_images(settings: Sequence[str], out: Path) -> None:
    """The images of the settings' source to `out`, once the model that training starts from is known to be there."""
    from pneumonia.config.compose import compose
    from pneumonia.data.sources import fetch
    from pneumonia.training.model import require_on_hub

    config = compose(settings)
    require_on_hub(config.model)
    fetch(config.data, out)


def publish_bundle(
    settings: Sequence[str], bundle: Path, root: str, volume: str, s3_endpoint: str, backend: str, out: Path
) -> None:
    """Publish the bundle below `root` as MLflow's candidate; the release's place goes to `out` as JSON.

    volume: PersistentVolumeClaim that is mounted at `root`, in which servers find the release; empty: none is.
    s3_endpoint: address of the object store, as boto3 takes it from AWS_ENDPOINT_URL_S3; empty leaves that as it is.
    backend: as in `write_repository`, or AUTO.
    """
    from pneumonia.config.compose import compose
    from pneumonia.release.publish import publish_release
    from pneumonia.release.registry import CANDIDATE, set_alias

    tracking = compose(settings).tracking.uri
    if s3_endpoint:
        os.environ["AWS_ENDPOINT_URL_S3"] = s3_endpoint
    opened = open_bundle(bundle)
    # An engine is only built where GPU nodes are to serve it.
    chosen = {AUTO: "tensorrt" if opened.has(contract.ENGINE_FILE) else "python"}.get(backend, backend)
    release = publish_release(bundle, root, backend=chosen, served_from=f"pvc://{volume}" if volume else None)
    set_alias(tracking, REGISTERED_MODEL, release.uri, CANDIDATE, opened.digest)
    write_json(out, {"release": release.uri, "model_id": release.model_id})


def deploy_release(
    settings: Sequence[str],
    release: Path,
    bundle: Path,
    images: Path,
    namespace: str,
    inference_service: str,
    canary_percent: int,
    out: Path,
) -> None:
    """Deploy what `publish_bundle` published; what was changed, or why not, goes to `out` as JSON.

    Raises as `deploy` does, and UsageError for a release in a folder, which only this step can see; of a refused canary
    `confirm_deployed` tells.
    """
    from pneumonia.config.compose import compose
    from pneumonia.rollout.deploy import deploy

    uri = json.loads(release.read_text("utf-8"))["release"]
    if "://" not in uri:
        raise UsageError(f"{uri}: {_UNREADABLE}")
    result = deploy(
        uri,
        bundle,
        images,
        service=inference_service,
        namespace=namespace,
        percent=canary_percent,
        tracking_uri=compose(settings).tracking.uri,
        registered_model=REGISTERED_MODEL,
    )
    write_json(out, result.to_json())


def confirm_deployed(deployed: Path) -> None:
    """Raises DeployRefused, with every reason, where `deploy_release` wrote that the canary was refused."""
    from pneumonia.rollout.deploy import DeployResult

    DeployResult(**json.loads(deployed.read_text("utf-8"))).require()
