"""Prepare: decoded pixels, patients and the split."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def prepare(settings: list[str], library_version: str, fetched: Input[Dataset], prepared: Output[Dataset]) -> str:
    """Decodes every image once, finds patients, drops exact duplicates and splits by patient.

    Fails with 3 where no image can be read, patients are not named, or a class has too few of them. Never cached: only
    its own output says which images these were.

    Args:
        settings: as `fetch` gave them.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        fetched: from fetch.
        prepared: `prepared.json`, `index.csv`, `pixels.npy`.

    Returns:
        The digest of the prepared data, which later steps have in their cache key.
    """
    from pneumonia.pipelines.step import step

    with step("prepare", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.data.prepare import prepare

        data = prepare(compose(settings), Path(fetched.path), Path(prepared.path))
        prepared.metadata.update(digest=data.manifest["digest"], synthetic=data.manifest["synthetic"])
    return str(data.manifest["digest"])
