"""Score a shard: the answers of a published model for the images of one list."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def score_shard(
    shard: int, bundle: str, server: str, library_version: str, lists: Input[Dataset], scores: Output[Dataset]
):
    """Scores the images of one list with ONNX Runtime, or asks a server.

    An image that cannot be read is a row with its error. Fails with 4 where there is no bundle or no server.

    Args:
        shard: number of the list.
        bundle: folder of the bundle, for scoring in this step.
        server: host and port of a Triton server to ask instead; empty for none.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        lists: from list_shards.
        scores: `scores.csv`, one row an image.
    """
    from pneumonia.pipelines.step import step

    with step("score_shard", library_version):
        from pathlib import Path

        from pneumonia.pipelines.shards import score_shard

        score_shard(int(shard), Path(lists.path), Path(bundle), server, Path(scores.path))
