"""List shards: the images to score, dealt out to as many lists as there are shards."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def list_shards(images: str, shards: int, library_version: str, lists: Output[Dataset]) -> list[int]:
    """Lists the images of a folder and deals them out, each to one shard. Never cached: a folder may hold more by now.

    Fails with 3 where there are no images.

    Args:
        images: folder, or pattern such as `/images/2026-*/*.dcm`, as this step and those of the shards see it.
        shards: how many lists to make; fewer where there are fewer images.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        lists: one text file a shard, `0.txt` and so on, of one path a line.

    Returns:
        The numbers of the lists.
    """
    from pneumonia.pipelines.step import step

    with step("list_shards", library_version):
        from pathlib import Path

        from pneumonia.pipelines.shards import list_shards

        return list_shards(images, int(shards), Path(lists.path))
