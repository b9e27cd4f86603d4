"""Prepare: decoded pixels, patients and the split."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def prepare(
    data_digest: str,
    library_version: str,
    settings: Input[Artifact],
    fetched: Input[Dataset],
    prepared: Output[Dataset],
):
    """Decodes every image once, finds patients, drops exact duplicates and splits by patient.

    Fails with 3 where no image can be read, patients are not named, or a class has too few of them.

    Args:
        data_digest: from check; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        settings: from fetch.
        fetched: from fetch.
        prepared: `prepared.json`, `index.csv`, `pixels.npy`.
    """
    from pneumonia.pipelines.step import step

    with step("prepare", library_version):
        from pathlib import Path

        from pneumonia.pipelines.tasks import prepare_fetched

        found = prepare_fetched(Path(settings.path), Path(fetched.path), Path(prepared.path))
        prepared.metadata.update(digest=found["digest"], synthetic=found["synthetic"])
