"""Publish: an immutable release that a Triton server can load, named by the bundle's digest."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def publish(release_root: str, library_version: str, bundle: Input[Model], release: Output[Artifact]):
    from pneumonia.pipelines.step import step

    with step("publish", library_version):
        from pathlib import Path

        from pneumonia.files import write_json
        from pneumonia.release.publish import publish

        write_json(Path(release.path), {"release": str(publish(Path(bundle.path), Path(release_root)))})
