"""Publish: an immutable release that a Triton server can load, named by the bundle's digest."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def publish(
    settings: list[str],
    release_root: str,
    release_volume: str,
    s3_endpoint: str,
    backend: str,
    library_version: str,
    bundle: Input[Model],
    release: Output[Artifact],
):
    """Writes an immutable release, a complete Triton model repository, named by its content.

    It goes to `<release_root>/releases/`, its manifest `release.json` last; MLflow's registry gets it as `candidate`.
    Publishing the same again verifies and changes nothing. Fails with 3 where a release was changed after it was
    written, 4 where the object store or MLflow does not answer. Never cached.

    Args:
        settings: as `fetch` gave them.
        release_root: folder or `s3://bucket/prefix` that holds `releases/`.
        release_volume: PersistentVolumeClaim that is mounted at `release_root`; empty where none is.
        s3_endpoint: address of the object store; empty for the environment's.
        backend: Triton backend that runs the model; `auto`: `tensorrt` where the bundle has an engine, else `python`.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        bundle: from parity.
        release: JSON with the release's place and model.
    """
    from pneumonia.pipelines.step import publish_bundle, step

    with step("publish", library_version):
        from pathlib import Path

        place = (release_root, release_volume, s3_endpoint)
        publish_bundle(settings, Path(bundle.path), *place, backend, Path(release.path))
