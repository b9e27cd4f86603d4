"""Deploy: a canary that is tested before it gets traffic, and then takes the place of the model that is served."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def deploy(
    library_version: str,
    namespace: str,
    inference_service: str,
    canary_percent: int,
    settings: Input[Artifact],
    release: Input[Artifact],
    bundle: Input[Model],
    fetched: Input[Dataset],
    deployed: Output[Artifact],
):
    """Brings a release to an InferenceService of KServe: as a canary without traffic, tested, with some, promoted.

    A canary that fails a test is removed, the model that was served stays, and the reasons are in `deployed`, by which
    `confirm` fails: what a failed step has written is lost, and one that is tried again would put the canary back.
    Fails with 4 where the cluster lacks KServe or this step may not change it. Safe to run again after it was stopped
    anywhere. Never cached.

    Args:
        library_version: version of `pneumonia` that the pipeline was compiled for.
        namespace: of the InferenceService.
        inference_service: its name.
        canary_percent: share of the traffic that a tested canary gets before it is promoted.
        settings: from fetch.
        release: from publish.
        bundle: the bundle of that release, with the probe to test the canary by.
        fetched: from fetch; it holds the probe's images.
        deployed: JSON: what was changed, and what the tests found.
    """
    from pneumonia.pipelines.step import step

    with step("deploy", library_version):
        from pathlib import Path

        from pneumonia.pipelines.tasks import deploy_release

        given = [Path(item.path) for item in (settings, release, bundle, fetched)]
        deploy_release(*given, namespace, inference_service, canary_percent, Path(deployed.path))
