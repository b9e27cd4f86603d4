"""Steps of the training pipeline that are more than one call of the library."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle, open_bundle
from pneumonia.config.compose import changed, load
from pneumonia.errors import DataError, UsageError
from pneumonia.export.parity import Parity
from pneumonia.files import replace_file, write_json
from pneumonia.pipelines.checks import AUTO, UNREADABLE, VOLUMES
from pneumonia.pipelines.retry import patiently
from pneumonia.pipelines.settings import write_settings

REGISTERED_MODEL = "pneumonia"
"""Name in MLflow's model registry."""


def fetch_images(overrides: Sequence[str], settings: Path, out: Path) -> None:
    """The settings of later steps to `settings`, and the images of their source to `out` as one archive.

    One file, because Kubeflow moves what lies in a folder file by file.
    """
    from pneumonia.data.sources import fetch

    write_settings(overrides, settings)
    config = load(settings)
    with tempfile.TemporaryDirectory(prefix="pneumonia-fetch.") as folder:
        images = Path(folder) / "images"
        patiently(lambda: fetch(config.data, images))
        # Images are compressed already. A zip, because tarfile of Python before 3.11.4 trusts the names in it.
        with replace_file(out) as stream, zipfile.ZipFile(stream, "w", strict_timestamps=False) as archive:
            for path in sorted(images.rglob("*")):
                archive.write(path, path.relative_to(images))


@contextlib.contextmanager
def unpacked(fetched: Path) -> Iterator[Path]:
    """The folder of images in an archive of `fetch_images`, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="pneumonia-images.") as folder:
        yield unpack(fetched, Path(folder) / "images")


def unpack(fetched: Path, out: Path) -> Path:
    """Take the images of an archive of `fetch_images` out to `out`; returns `out`."""
    try:
        with zipfile.ZipFile(fetched) as archive:
            archive.extractall(out)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{fetched}: no archive of fetched images ({error}); run `fetch` again") from error
    return out


def prepare_fetched(settings: Path, fetched: Path, out: Path) -> dict[str, Any]:
    """Prepare the images of an archive of `fetch_images`; returns the manifest of the prepared data."""
    from pneumonia.data.prepare import prepare

    with unpacked(fetched) as images:
        return prepare(load(settings), images, out).manifest


def train_anywhere(settings: Path, prepared: Path, out: Path, nodes: Mapping[str, Any]) -> Bundle:
    """Train in this process, or on the nodes of a TrainJob where `nodes` names some, as in `Start`."""
    config = load(settings)
    if not nodes:
        from pneumonia.training.train import train

        return train(config, prepared, out)
    from pneumonia.training.trainjob import JobShape, train_on_cluster

    places = (tuple(nodes["tolerations"]), nodes["node_selector"])
    shape = JobShape(int(nodes["num_nodes"]), int(nodes["gpus"]), nodes["image"], nodes["claim"], *places)
    return train_on_cluster(changed(config), prepared, out, shape)


def evaluate_trained(settings: Path, trained: Path, prepared: Path, out: Path, baseline: bool) -> None:
    """Score the test split; with `baseline`, fit a logistic regression too and put its figures beside the model's."""
    from pneumonia.evaluation.evaluate import evaluate

    config = load(settings)
    evaluate(config, trained, prepared, out)
    if baseline:
        from pneumonia.pipelines.show import BASELINE_FILE
        from pneumonia.training.baseline import train_baseline

        train_baseline(config, prepared, out / BASELINE_FILE)


def export_forms(
    settings: Path, trained: Path, evaluation: Path, prepared: Path, out: Path, tensorrt: bool
) -> dict[str, Parity]:
    """The final bundle with every form that is asked for to `out`, and their parity with PyTorch by name.

    Each form is checked as it is made, and all of them once more as they are in the bundle. Raises as the exports do.
    """
    from pneumonia.export.build_engine import build_engine
    from pneumonia.export.forms import check_forms
    from pneumonia.export.to_int8 import export_int8
    from pneumonia.export.to_onnx import export_onnx

    config = load(settings)
    with tempfile.TemporaryDirectory(prefix="pneumonia-export.") as folder:
        made = export_onnx(config, trained, evaluation, prepared, Path(folder) / "onnx")
        made = export_int8(config, made.path, prepared, Path(folder) / "int8")
        if tensorrt:
            made = build_engine(config, made.path, prepared, Path(folder) / "engine")
        found = check_forms(made.path, prepared)
        extend_bundle(made, out, {})
    return found


def publish_bundle(
    settings: Path, bundle: Path, root: str, volume: str, s3_endpoint: str, backend: str, out: Path
) -> dict[str, Any]:
    """Publish the bundle below `root` as MLflow's candidate; the release's place goes to `out` as JSON, and back.

    volume: PersistentVolumeClaim that is to use instead of `root`; empty: none is. s3_endpoint:
    address of the object store, as boto3 takes it from AWS_ENDPOINT_URL_S3; empty leaves that as it is. backend: as in
    `write_repository`, or AUTO.
    """
    from pneumonia.release.publish import publish_release
    from pneumonia.release.registry import CANDIDATE, set_alias

    tracking = load(settings).tracking.uri
    use_endpoint(s3_endpoint)
    opened = open_bundle(bundle)
    # An engine is only built where GPU nodes are to serve it.
    chosen = {AUTO: "tensorrt" if opened.has(contract.ENGINE_FILE) else "python"}.get(backend, backend)
    place = (VOLUMES["release_volume"][1], f"pvc://{volume}") if volume else (root, None)
    release = patiently(lambda: publish_release(bundle, place[0], backend=chosen, served_from=place[1]))
    patiently(lambda: set_alias(tracking, REGISTERED_MODEL, release.uri, CANDIDATE, opened.digest))
    said = {"release": release.uri, "model_id": release.model_id, "kubeflow_run": opened.manifest.kubeflow_run}
    made = f", trained by run {opened.manifest.kubeflow_run}" if opened.manifest.kubeflow_run else ""
    print(f"publish: {release.model_id} in {release.uri}{made}", file=sys.stderr, flush=True)
    write_json(out, said)
    return said


def use_endpoint(s3_endpoint: str) -> None:
    """Let boto3 talk to this object store in place of the environment's; empty leaves that as it is."""
    if s3_endpoint:
        os.environ["AWS_ENDPOINT_URL_S3"] = s3_endpoint


def deploy_release(
    settings: Path,
    release: Path,
    bundle: Path,
    fetched: Path,
    namespace: str,
    inference_service: str,
    canary_percent: int,
    out: Path,
) -> None:
    """Deploy what `publish_bundle` published; what was changed, or why not, goes to `out` as JSON.

    Raises as `deploy` does, and UsageError for a release in a folder, which only this step can see; of a refused canary
    `confirm_deployed` tells.
    """
    from pneumonia.rollout.deploy import deploy

    uri = json.loads(release.read_text("utf-8"))["release"]
    if "://" not in uri:
        raise UsageError(f"{uri}: {UNREADABLE}")
    plan: dict[str, Any] = {"percent": canary_percent, "tracking_uri": load(settings).tracking.uri}
    plan |= {"service": inference_service, "namespace": namespace, "registered_model": REGISTERED_MODEL}
    with unpacked(fetched) as images:
        # Safe to run again: it goes on from what the cluster has.
        result = patiently(lambda: deploy(uri, bundle, images, **plan))
    write_json(out, result.to_json())


def confirm_deployed(deployed: Path) -> None:
    """Raises DeployRefused, with every reason, where `deploy_release` wrote that the canary was refused."""
    from pneumonia.rollout.deploy import DeployResult

    DeployResult(**json.loads(deployed.read_text("utf-8"))).require()
