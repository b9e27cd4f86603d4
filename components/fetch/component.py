"""Fetch: the source's images, and the settings that every later step reads."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def fetch(
    overrides: list,
    data_digest: str,
    library_version: str,
    settings: Output[Artifact],
    fetched: Output[Dataset],
):
    """Makes the images of a source available, and writes the settings of later steps.

    Fails with 2 for an unknown key, choice or value; 3 for a folder that is not there or holds no X-rays; 4 where a
    source needs credentials or a network that are not there. On a cluster a network that was lost is tried again.

    Args:
        overrides: from check: the whole configuration as overrides.
        data_digest: from check; part of the cache key, which does not see what a folder holds.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        settings: `settings.yaml`: the whole configuration, resolved.
        fetched: one zip archive of `source.json` and, where the source makes them, the images.
    """
    from pneumonia.pipelines.step import step

    with step("fetch", library_version):
        from pathlib import Path

        from pneumonia.pipelines.tasks import fetch_images

        fetch_images(overrides, Path(settings.path), Path(fetched.path))
