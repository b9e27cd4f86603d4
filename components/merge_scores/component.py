"""Merge scores: one table of the answers of all shards."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def merge_scores(library_version: str, shards: Input[list[Dataset]], scores: Output[Dataset], metrics: Output[Metrics]):
    """Puts the tables of all shards into one, rows by file name.

    Args:
        library_version: version of `pneumonia` that the pipeline was compiled for.
        shards: from score_shard.
        scores: `scores.csv`: filename, prediction, confidence, probability, threshold, uncertain,
            model_id, error.
        metrics: images, errors and answers by class, for the user interface.
    """
    from pneumonia.pipelines.step import step

    with step("merge_scores", library_version):
        from pathlib import Path

        from pneumonia.pipelines.shards import merge_scores

        for name, value in merge_scores([Path(shard.path) for shard in shards], Path(scores.path)).items():
            metrics.log_metric(name, value)
