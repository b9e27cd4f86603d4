"""Fetch: the source's images, and the settings that every later step reads."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def fetch(
    experiment: str,
    source: str,
    data_root: str,
    overrides: list[str],
    gate: dict,
    tracking_uri: str,
    data_digest: str,
    library_version: str,
    settings: Output[Artifact],
    fetched: Output[Dataset],
):
    """Makes the images of a source available, and turns the pipeline's parameters into the settings of later steps.

    Fails with 2 for an unknown key, choice or value; 3 for a folder that is not there or holds no X-rays; 4 where a
    source needs credentials or a network that are not there. On a cluster a network that was lost is tried again.

    Args:
        experiment: `local`, `smoke`, `vit_base` or `dinov2_small`.
        source: where the images come from, such as `phantom` or `folder`.
        data_root: folder of X-rays for `source=folder`; empty otherwise.
        overrides: configuration, such as `training.num_train_epochs=5`.
        gate: least test figures in place of the experiment's, such as `{"recall": 0.95}`.
        tracking_uri: MLflow server, `null` for none; empty for what the experiment says.
        data_digest: from check; part of the cache key, which does not see what a folder holds.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        settings: `settings.yaml`: the whole configuration, resolved.
        fetched: one zip archive of `source.json` and, where the source makes them, the images.
    """
    from pneumonia.pipelines.step import step

    with step("fetch", library_version):
        from pathlib import Path

        from pneumonia.pipelines.settings import overrides_of
        from pneumonia.pipelines.tasks import fetch_images

        said = overrides_of(experiment, source, data_root, overrides, gate, tracking_uri)
        fetch_images(said, Path(settings.path), Path(fetched.path))
