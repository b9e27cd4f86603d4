"""Publish: an immutable release that a Triton server can load, named by the bundle's digest."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def publish(
    release_root: str,
    release_volume: str,
    s3_endpoint: str,
    backend: str,
    library_version: str,
    settings: Input[Artifact],
    bundle: Input[Model],
    release: Output[Artifact],
):
    """Writes an immutable release, a complete Triton model repository, named by its content.

    It goes to `<release_root>/releases/`, its manifest `release.json` last; MLflow's registry gets it as `candidate`.
    Publishing the same again verifies and changes nothing. Fails with 3 where a release was changed after it was
    written, 4 where the object store or MLflow does not answer, after some tries on a cluster. Never cached.

    Args:
        release_root: folder or `s3://bucket/prefix` that holds `releases/`.
        release_volume: PersistentVolumeClaim that is mounted here, to write to instead; empty where none is.
        s3_endpoint: address of the object store; empty for the environment's.
        backend: Triton backend that runs the model; `auto`: `tensorrt` where the bundle has an engine, else `python`.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        settings: from fetch.
        bundle: from export.
        release: JSON with the release's place and model, which Kubeflow's page shows too.
    """
    from pneumonia.pipelines.step import step

    with step("publish", library_version):
        from pathlib import Path

        from pneumonia.pipelines.tasks import publish_bundle

        place = (release_root, release_volume, s3_endpoint)
        said = publish_bundle(Path(settings.path), Path(bundle.path), *place, backend, Path(release.path))
        release.metadata.update(said)
