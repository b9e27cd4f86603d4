"""The first step of a training run: what could only fail hours later is looked at now, and tasks get their places."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pneumonia.config.compose import compose
from pneumonia.config.schema import Config
from pneumonia.core.dicom import SALT_ENV
from pneumonia.errors import MissingPrerequisite, UsageError
from pneumonia.kubernetes import KubernetesCluster, Namespace, in_pod, own_namespace
from pneumonia.pipelines.checks import VOLUMES, refuse_before_submission
from pneumonia.pipelines.gpu_nodes import require_gpu_nodes
from pneumonia.pipelines.retry import patiently
from pneumonia.pipelines.tasks import use_endpoint
from pneumonia.training.trainjob import GPU_TAINT

DEPLOY_RIGHTS = (
    ("get", "inferenceservices"),
    ("patch", "inferenceservices"),
    ("list", "deployments"),
    ("list", "pods"),
    ("create", "configmaps"),
)
TRAINJOB_RIGHTS = (("create", "trainjobs"), ("get", "trainjobs"), ("delete", "trainjobs"), ("list", "pods"))


class Start(NamedTuple):
    """What the first step says to the others, in the order of the component's outputs.

    data_digest: changes when the images change, which the cache cannot see. overrides: of the configuration, as given.
    train_*, export_*: image, number of GPUs
    ("" for none), tolerations and node selector of a task. train_nodes: {} for a training in its own pod, else what a
    TrainJob's nodes are.
    """

    data_digest: str
    overrides: list[str]
    train_image: str
    train_gpus: str
    train_tolerations: list[dict[str, Any]]
    train_node_selector: dict[str, str]
    train_nodes: dict[str, Any]
    export_image: str
    export_gpus: str
    export_tolerations: list[dict[str, Any]]
    export_node_selector: dict[str, str]


def start(overrides: Sequence[str], parameters: Mapping[str, Any]) -> Start:
    """Refuse a run that cannot end well, and place its tasks.

    overrides: of the configuration. parameters: the pipeline's, by name. Raises UsageError and ConfigError for what was
    asked for, DataError for a folder of images, MissingPrerequisite for what the cluster does not give.
    """
    from pneumonia.training.model import require_on_hub

    refuse_before_submission(parameters)
    config = compose(overrides)
    digest = data_digest(config)
    patiently(lambda: require_on_hub(config.model))
    if on_nodes(parameters) and not parameters["training_volume"]:
        raise UsageError("several GPUs: a TrainJob's data travels through a ReadWriteMany claim; give training_volume=")
    _require_tracking(config)
    _require_place_for_release(parameters)
    if in_pod():
        for name, (_, mounted, writes) in VOLUMES.items():
            if parameters[name]:
                require_volume(name, str(parameters[name]), Path(mounted), writes)
        _require_rights(parameters)
        _require_gpus(parameters)
    return places(digest, overrides, parameters)


def on_nodes(parameters: Mapping[str, Any]) -> bool:
    """Whether the training is a TrainJob of several processes."""
    return int(parameters["gpus"]) * int(parameters["num_nodes"]) > 1


def places(digest: str, overrides: Sequence[str], parameters: Mapping[str, Any]) -> Start:
    """The answer of `start`: one GPU is the step's own, several are a TrainJob's, whose step only follows it."""
    selector = dict(parameters["gpu_node_selector"])
    tolerations = [GPU_TAINT, *parameters["gpu_tolerations"]]
    cpu: tuple[str, str, list[Any], dict[str, str]] = (parameters["cpu_image"], "", [], {})
    gpu = (parameters["cuda_image"], "1", tolerations, selector)
    nodes: dict[str, Any] = {}
    if on_nodes(parameters):
        shape = {"num_nodes": int(parameters["num_nodes"]), "gpus": int(parameters["gpus"])}
        where = {"tolerations": list(parameters["gpu_tolerations"]), "node_selector": selector}
        nodes = {**shape, **where, "image": parameters["cuda_image"], "claim": parameters["training_volume"]}
    own_gpu = int(parameters["gpus"]) == 1 and not nodes
    said = (digest, list(overrides))
    return Start._make((*said, *(gpu if own_gpu else cpu), nodes, *(gpu if parameters["tensorrt"] else cpu)))


def data_digest(config: Config) -> str:
    """SHA-256 of what decides the prepared images beside the settings: the source's version, and the patients' salt."""
    from pneumonia.data.sources import version_of

    version = patiently(lambda: version_of(config.data))
    return hashlib.sha256(json.dumps([version, os.environ.get(SALT_ENV)]).encode()).hexdigest()


def _require_tracking(config: Config) -> None:
    from pneumonia.training.tracking import require_reachable

    uri = config.tracking.uri
    if uri is not None and uri != "local":
        patiently(lambda: require_reachable(uri))


def _require_place_for_release(parameters: Mapping[str, Any]) -> None:
    from pneumonia.release.stores import S3Store, open_store

    if parameters["release_volume"]:
        return
    use_endpoint(parameters["s3_endpoint"])
    store = open_store(parameters["release_root"])
    if isinstance(store, S3Store):
        patiently(store.require_writable)


def require_volume(name: str, claim: str, mounted: Path, writes: bool) -> None:
    """Raises UsageError where the compiled file mounts nothing there, MissingPrerequisite where it cannot be used."""
    if not mounted.is_dir():
        raise UsageError(
            f"{name}={claim}: the compiled pipeline mounts no volume at {mounted}; submit it with `pneumoctl pipeline "
            f"submit {name}={claim}`, or compile it with `pneumoctl pipeline compile train {name}={claim}`"
        )
    try:
        if writes:
            tempfile.TemporaryFile(dir=mounted).close()
        else:
            os.listdir(mounted)
    except OSError as error:
        raise MissingPrerequisite(
            f"{name}={claim}: user {os.getuid()} cannot {'write' if writes else 'read'} it ({error.strerror}); give "
            f"it to that user, as with `chown -R {os.getuid()} .` in a pod that mounts it as root"
        ) from error


def _require_rights(parameters: Mapping[str, Any]) -> None:
    """Of this step's account, before the steps that need them."""
    cluster = KubernetesCluster() if parameters["deploy"] or on_nodes(parameters) else None
    if cluster and parameters["deploy"]:
        target = Namespace(cluster, parameters["namespace"])
        service = str(parameters["inference_service"])
        patiently(lambda: target.require(DEPLOY_RIGHTS[:2], service))
        patiently(lambda: target.require(DEPLOY_RIGHTS[2:]))
        if patiently(lambda: target.get("inferenceservices", service)) is None:
            raise MissingPrerequisite(
                f"no InferenceService {service} in namespace {target.name}; install the chart there first, or give "
                "namespace= and inference_service="
            )
    if cluster and on_nodes(parameters):
        own = Namespace(cluster, own_namespace())
        patiently(lambda: own.require(TRAINJOB_RIGHTS))


def _require_gpus(parameters: Mapping[str, Any]) -> None:
    gpus, engine = int(parameters["gpus"]), bool(parameters["tensorrt"])
    if parameters["gpu_autoscaling"] or not (gpus or engine):
        return
    cluster = KubernetesCluster()
    patiently(lambda: require_gpu_nodes(cluster, int(parameters["num_nodes"]), max(gpus, int(engine)), parameters))
