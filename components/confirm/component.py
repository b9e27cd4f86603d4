"""Confirm: the pipeline fails where the canary was refused."""

from kfp import dsl
from kfp.dsl import Artifact, Input

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def confirm(library_version: str, deployed: Input[Artifact]):
    """Fails with 5 where deploy refused the release, with the reasons as its last lines.

    A step of its own, so that the reasons are kept as an artifact and no retry brings a refused canary back. Never
    cached, never tried again.

    Args:
        library_version: version of `pneumonia` that the pipeline was compiled for.
        deployed: from deploy.
    """
    from pneumonia.pipelines.step import step

    with step("confirm", library_version):
        from pathlib import Path

        from pneumonia.pipelines.tasks import confirm_deployed

        confirm_deployed(Path(deployed.path))
